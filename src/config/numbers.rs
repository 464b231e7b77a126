//! Whole numbers and lists as Go's flag library reads them.
//!
//! Numbers have a base prefix and separators (`0x10`, `0o17`, `0b101`, `017`, `1_000`: Go's `strconv.ParseInt` with base 0); lists are
//! records of CSV (RFC 4180), so an item may be quoted. Proven by the tables below.

/// A whole number; `None` if it is none, or beyond 64 bits.
pub fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, rest) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // A separator stands between digits, or between prefix and digits.
    let prefixed = radix != 10;
    let separated = rest.ends_with('_') || rest.contains("__") || (rest.starts_with('_') && !prefixed);
    if rest.is_empty() || separated || rest.starts_with(['+', '-']) {
        return None;
    }
    let number = i128::from_str_radix(&rest.replace('_', ""), radix).ok()?;
    i64::try_from(if negative { -number } else { number }).ok()
}

/// The items of a list; `None` if quotes do not fit. An empty text is no item.
pub fn items(text: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut rest = text;
    if rest.is_empty() {
        return Some(items);
    }
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (item, more) = rest.split_once(',').map_or((rest, None), |(item, more)| (item, Some(more)));
            if item.contains('"') {
                return None;
            }
            items.push(item.to_owned());
            match more {
                Some(more) => rest = more,
                None => return Some(items),
            }
            continue;
        };
        let mut item = String::new();
        let mut tail = quoted;
        loop {
            let (piece, after) = tail.split_once('"')?;
            item.push_str(piece);
            match after.strip_prefix('"') {
                Some(after) => {
                    item.push('"');
                    tail = after;
                }
                None => {
                    tail = after;
                    break;
                }
            }
        }
        items.push(item);
        match tail.strip_prefix(',') {
            Some(more) => rest = more,
            None if tail.is_empty() => return Some(items),
            None => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_go_reads_them() {
        for (text, want) in [
            ("0", Some(0)),
            ("-14", Some(-14)),
            ("+7", Some(7)),
            ("0x10", Some(16)),
            ("-0X1f", Some(-31)),
            ("0b101", Some(5)),
            ("0o17", Some(15)),
            ("017", Some(15)),
            ("1_000", Some(1000)),
            ("0x_f", Some(15)),
            ("0_17", Some(15)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("08", None),
            ("0x", None),
            ("1__0", None),
            ("_1", None),
            ("1_", None),
            ("1.0", None),
            ("--1", None),
            ("0x-1", None),
            (" 1", None),
        ] {
            assert_eq!(integer(text), want, "{text:?}");
        }
    }

    #[test]
    fn lists_are_records_of_csv() {
        for (text, want) in [
            ("", Some(&[][..])),
            ("a", Some(&["a"][..])),
            ("a,b", Some(&["a", "b"])),
            ("\"a\",b", Some(&["a", "b"])),
            ("\"a,b\",c", Some(&["a,b", "c"])),
            ("\"say \"\"a\"\"\"", Some(&["say \"a\""])),
            ("a,", Some(&["a", ""])),
            ("\"\"", Some(&[""])),
            ("\"a", None),
            ("\"a\"b", None),
            ("a\"b", None),
        ] {
            let want = want.map(|items| items.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(items(text), want, "{text:?}");
        }
    }
}
