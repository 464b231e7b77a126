//! Text from outside, made harmless to look at.

use std::borrow::Cow;

/// The longest text that is shown as a whole, in characters. A DNS name has 253 (RFC 1035).
const LONGEST: usize = 253;

/// The same text without anything that a terminal, a log or a reader could take for more than text: control characters and those that
/// change the direction of writing (Unicode TR 9) appear as `\u{1b}`, and what is longer than any name ends with an ellipsis. A name that a
/// Kubernetes API server let through comes back as it is.
pub fn plain(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST && !text.chars().any(is_active) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len().min(LONGEST));
    for (place, c) in text.chars().enumerate() {
        if place == LONGEST {
            plain.push('…');
            break;
        }
        match is_active(c) {
            true => plain.extend(c.escape_unicode()),
            false => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_act_is_written_out_and_the_rest_stays() {
        for harmless in ["", "web", "shop/web:http", "<b>\"x\"</b>, =1+1", "läden"] {
            assert!(matches!(plain(harmless), Cow::Borrowed(same) if same == harmless), "{harmless}");
        }
        assert_eq!(plain("a\u{1b}[31m\n\u{202e}b"), "a\\u{1b}[31m\\u{a}\\u{202e}b");
        assert_eq!(plain(&"x".repeat(300)).chars().count(), LONGEST + 1);
    }
}
