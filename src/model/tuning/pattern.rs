//! Which endpoints an entry means.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use wildmatch::WildMatch;

use crate::model::address::parse_address;
use crate::model::network::parse_network;
use crate::model::slice::Endpoint;

/// The longest name that Kubernetes gives to anything (RFC 1123 subdomain).
const MAX_LEN: usize = 253;

/// Names endpoints: a glob (`*` is any text, `?` any character) for the pod's name, or `node:GLOB`, `zone:GLOB`, `ip:ADDRESS` or
/// `ip:CIDR`.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As it was written, which tells patterns apart.
    text: String,
    key: Key,
}

#[derive(Clone, Debug)]
enum Key {
    Pod(WildMatch),
    Node(WildMatch),
    Zone(WildMatch),
    Address(IpNet),
}

/// How the names begin that a pattern matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lead<'a> {
    /// It looks at the pod's name alone, by this glob.
    Pod(&'a str),
    /// At the node's.
    Node(&'a str),
    /// At the zone's.
    Zone(&'a str),
    /// At no name, or it needs none.
    Other,
}

// === impl Pattern ===

impl Pattern {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("names no endpoints".to_owned());
        }
        if text.len() > MAX_LEN + "node:".len() {
            return Err(format!("longer than any name ({MAX_LEN})"));
        }
        let (prefix, rest) = text.split_once(':').map_or(("", text), |(prefix, rest)| (prefix.trim(), rest.trim()));
        let key = match prefix {
            "" if text.starts_with(':') => return Err("not pod name, node:, zone: or ip:".to_owned()),
            "" => Key::Pod(glob(rest)?),
            "node" => Key::Node(glob(rest)?),
            "zone" => Key::Zone(glob(rest)?),
            "ip" => {
                let single = parse_address(rest).map(IpNet::from);
                Key::Address(single.or_else(|| parse_network(rest)).ok_or("neither an address nor a CIDR")?)
            }
            _ => return Err("not pod name, node:, zone: or ip:".to_owned()),
        };
        Ok(Self { text: text.to_owned(), key })
    }

    /// Whether it means an endpoint. What an endpoint does not say (its pod, node or zone) no pattern matches, but `*` matches every
    /// endpoint, also one that no pod stands behind.
    pub fn matches(&self, endpoint: &Endpoint) -> bool {
        let named = |glob: &WildMatch, name: Option<&str>| name.is_some_and(|name| glob.matches(name));
        match &self.key {
            Key::Pod(glob) => named(glob, endpoint.pod.as_deref()) || self.is_everyone(),
            Key::Node(glob) => named(glob, endpoint.node()),
            Key::Zone(glob) => named(glob, endpoint.zone()),
            Key::Address(network) => contains(network, endpoint.address),
        }
    }

    /// What has to be known to ask only those patterns that could match.
    pub(super) fn lead(&self) -> Lead<'_> {
        let glob = self.text.split_once(':').map_or(self.text.as_str(), |(_, rest)| rest.trim());
        match &self.key {
            Key::Pod(_) if self.is_everyone() => Lead::Other,
            Key::Pod(_) => Lead::Pod(glob),
            Key::Node(_) => Lead::Node(glob),
            Key::Zone(_) => Lead::Zone(glob),
            Key::Address(_) => Lead::Other,
        }
    }

    /// Whether it is `*`, which needs nobody to match.
    pub fn is_everyone(&self) -> bool {
        self.text.bytes().all(|byte| byte == b'*')
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn contains(network: &IpNet, address: IpAddr) -> bool {
    network.contains(&address)
}

/// Characters that no name has would match nothing for ever; a stray quote or a control character is a mistake worth a word.
fn glob(text: &str) -> Result<WildMatch, String> {
    let known = |char: char| char.is_ascii_alphanumeric() || ['-', '.', '_', '*', '?'].contains(&char);
    match text.chars().find(|char| !known(*char)) {
        Some(stranger) => Err(format!("{stranger:?} is in no name")),
        None if text.is_empty() => Err("names no endpoints".to_owned()),
        None => Ok(WildMatch::new(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Hints;

    fn endpoint() -> Endpoint {
        let endpoint = Endpoint {
            pod: Some("web-canary-5d9f-x2".into()),
            hints: Some(Hints { zones: vec!["elsewhere".into()], nodes: Vec::new() }.into()),
            ..Endpoint::ready_at([10, 1, 2, 3])
        };
        endpoint.at(Some("node-7.example"), Some("eu-1a"))
    }

    #[test]
    fn what_matches() {
        let table = [
            ("web-canary-5d9f-x2", true),
            ("web-canary-*", true),
            ("web-*-x2", true),
            ("*canary*", true),
            ("*", true),
            ("**", true),
            ("web-canary-5d9f-x?", true),
            ("web-canary", false),
            ("canary*", false),
            ("web-canary-5d9f-x2?", false),
            ("WEB-*", false),
            ("node:node-7.*", true),
            ("node: node-?.example", true),
            ("node:node-8*", false),
            ("zone:eu-1?", true),
            ("zone:elsewhere", false),
            ("ip:10.1.2.3", true),
            ("ip:10.1.0.0/16", true),
            ("ip:10.1.2.7/24", true),
            ("ip:10.1.2.4", false),
            ("ip:0.0.0.0/0", true),
            ("ip:fd00::/8", false),
        ];
        for (text, want) in table {
            assert_eq!(Pattern::parse(text).expect(text).matches(&endpoint()), want, "{text}");
        }
        let mut v6 = endpoint();
        v6.address = "fd00::7".parse().expect("an address");
        assert!(Pattern::parse("ip:fd00::/8").expect("one").matches(&v6));
        assert!(Pattern::parse("ip:fd00:0::7").expect("one").matches(&v6));
        let bare = Endpoint { pod: None, location: None, ..endpoint() };
        for (text, want) in [("*", true), ("?*", false), ("node:*", false), ("zone:*", false), ("ip:10.0.0.0/8", true)]
        {
            assert_eq!(Pattern::parse(text).expect(text).matches(&bare), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_pattern() {
        let table = [
            ("", "names no endpoints"),
            ("node:", "names no endpoints"),
            (":web", "not pod name, node:, zone: or ip:"),
            ("pot:web", "not pod name, node:, zone: or ip:"),
            ("ip:10.1.2", "neither an address nor a CIDR"),
            ("ip:10.1.2.*", "neither an address nor a CIDR"),
            ("ip:10.1.2.0/33", "neither an address nor a CIDR"),
            ("web\u{7}", "'\\u{7}' is in no name"),
            ("\"web-*\"", "'\"' is in no name"),
            ("web 1", "' ' is in no name"),
        ];
        for (text, want) in table {
            assert_eq!(Pattern::parse(text).expect_err(text), want);
        }
        assert_eq!(Pattern::parse(&"x".repeat(300)).expect_err("long"), "longer than any name (253)");
    }
}
