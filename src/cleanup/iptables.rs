//! What modes iptables and ipvs leave: chains `KUBE-*`, and jumps to them at the beginning of built-in chains.
//!
//! iptables exists twice: on nf_tables and as the older ip_tables. Rules of one are invisible to the other, and both can hold
//! something, so the programs of both are asked, as far as they are installed. What is there is read with `iptables-save`;
//! [`removals`] computes from it, as text to text, one input for `iptables-restore --noflush` per table, which either does all of
//! it or nothing.
//!
//! Chains are known by their names. What is not kube-proxy's stays: kubelet's `KUBE-FIREWALL`, `KUBE-KUBELET-CANARY` and
//! `KUBE-IPTABLES-HINT`, kube-router's `KUBE-ROUTER-*`, `KUBE-POD-FW-*`... One chain has users besides kube-proxy: the CNI plug-in
//! portmap can be told to jump to `KUBE-MARK-MASQ` and fails pods when it is missing. So when a chain of somebody else's jumps to
//! it, it stays, and with it `KUBE-POSTROUTING`, which masquerades what it marks.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::CleanupError;
use super::program::{ProgramError, run};

/// Chains with one name, in whichever table. The last five are of mode ipvs alone.
const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    MASQUERADE,
    MARK,
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Chains per Service and endpoint; a hash follows.
const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];
const MARK: &str = "KUBE-MARK-MASQ";
const MASQUERADE: &str = "KUBE-POSTROUTING";

/// Options whose value can be any text, also `-j`.
const FREE_TEXT: [&str; 3] = ["--comment", "--log-prefix", "--nflog-prefix"];

/// Seconds to wait for whoever else is changing ip_tables.
const LOCK_WAIT: &str = "5";

/// What is to be done in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Removal {
    table: String,
    /// For `iptables-restore --noflush`.
    restore: String,
    chains: usize,
    jumps: usize,
    /// The chain of somebody else's for which [`MARK`] stays.
    kept_for: Option<String>,
}

/// One table as `iptables-save` prints it.
#[derive(Debug, Default)]
struct Saved<'a> {
    name: &'a str,
    /// Names, and whether they are built in.
    chains: Vec<(&'a str, bool)>,
    /// The chain that it is in, what it says after `-A`, and the chain that it leads to, if it leads anywhere.
    rules: Vec<(&'a str, &'a str, Option<String>)>,
}

/// Removes everything of kube-proxy's from one family's tables, in each kind of iptables. `program` is `iptables` or `ip6tables`.
pub(super) fn remove(program: &str, errors: &mut Vec<CleanupError>) {
    let mut kinds = 0;
    for kind in ["-nft", "-legacy"] {
        kinds += usize::from(remove_from(&format!("{program}{kind}"), errors));
    }
    if kinds < 2 {
        // The one that has no kind in its name may be another one than that which was found, if any was.
        remove_from(program, errors);
    }
}

/// Whether there are such programs.
fn remove_from(program: &str, errors: &mut Vec<CleanupError>) -> bool {
    let saved = match run(&format!("{program}-save"), &[], "") {
        Ok(Some(saved)) => saved,
        Ok(None) => return false,
        Err(error) => {
            errors.push(error.into());
            return true;
        }
    };
    for line in saved.lines().filter(|line| line.starts_with("# Table") && line.contains("incompatible")) {
        warn!(program, said = line.trim_start_matches("# "), "a table cannot be looked into; whatever is there stays");
    }
    for removal in removals(&saved) {
        match restore(program, &removal) {
            Ok(()) => info!(
                program,
                table = removal.table,
                chains = removal.chains,
                jumps = removal.jumps,
                "removed kube-proxy's iptables chains"
            ),
            Err(error) => errors.push(error.into()),
        }
        if let Some(by) = removal.kept_for {
            warn!(program, chain = MARK, by, "left, with {MASQUERADE}: somebody else's chain uses it");
        }
    }
    true
}

fn restore(program: &str, removal: &Removal) -> Result<(), ProgramError> {
    let program = format!("{program}-restore");
    match run(&program, &["-w", LOCK_WAIT, "--noflush"], &removal.restore)? {
        Some(_) => Ok(()),
        None => Err(ProgramError::Run(program, std::io::ErrorKind::NotFound.into())),
    }
}

/// What removes kube-proxy's chains from what `iptables-save` printed, table by table; tables without them are not mentioned.
fn removals(saved: &str) -> Vec<Removal> {
    tables(saved).iter().filter_map(removal).collect()
}

fn removal(table: &Saved) -> Option<Removal> {
    let mut doomed: BTreeSet<&str> =
        table.chains.iter().filter(|(name, built_in)| !built_in && is_theirs(name)).map(|(name, _)| *name).collect();
    let built_in: BTreeSet<&str> =
        table.chains.iter().filter(|(_, built_in)| *built_in).map(|(name, _)| *name).collect();
    let kept_for = table.rules.iter().find_map(|(chain, _, target)| {
        let foreign = !doomed.contains(chain) && !built_in.contains(chain);
        (foreign && target.as_deref() == Some(MARK)).then(|| (*chain).to_owned())
    });
    if kept_for.is_some() {
        doomed.remove(MARK);
        doomed.remove(MASQUERADE);
    }
    if doomed.is_empty() {
        return None;
    }
    let jumps: Vec<_> = table
        .rules
        .iter()
        .filter(|(chain, _, target)| {
            !doomed.contains(chain) && target.as_deref().is_some_and(|target| doomed.contains(target))
        })
        .collect();
    let mut restore = format!("*{}\n", table.name);
    // With --noflush, to name a chain of one's own is to empty it: after this no chain refers to another.
    doomed.iter().for_each(|chain| restore += &format!(":{chain} - [0:0]\n"));
    jumps.iter().for_each(|(_, rule, _)| restore += &format!("-D {rule}\n"));
    doomed.iter().for_each(|chain| restore += &format!("-X {chain}\n"));
    restore += "COMMIT\n";
    Some(Removal { table: table.name.to_owned(), restore, chains: doomed.len(), jumps: jumps.len(), kept_for })
}

fn is_theirs(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.len() > prefix.len() && chain.starts_with(prefix))
}

/// Reads what `iptables-save` prints: `*TABLE`, `:CHAIN POLICY [COUNTERS]` with policy `-` for what is not built in, `-A CHAIN RULE`.
fn tables(saved: &str) -> Vec<Saved<'_>> {
    let mut tables: Vec<Saved> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Saved { name: name.trim(), ..Saved::default() });
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                table.chains.push((name, policy != "-"));
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            table.rules.push((rule.split(' ').next().unwrap_or_default(), rule, target(rule)));
        }
    }
    tables
}

/// Where a rule leads to: what follows `-j` or `-g`.
fn target(rule: &str) -> Option<String> {
    let mut words = words(rule).into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-j" | "-g" => return words.next(),
            option if FREE_TEXT.contains(&option) => drop(words.next()),
            _ => {}
        }
    }
    None
}

/// Splits as `iptables-restore` does: words may stand in double quotes, in which a backslash takes the meaning of what follows.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let (mut quoted, mut escaped) = (false, false);
    for character in line.chars() {
        match character {
            _ if escaped => {
                word.get_or_insert_default().push(character);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' | '\t' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The removal as text, table by table.
    fn restores(saved: &str) -> String {
        removals(saved).into_iter().map(|removal| removal.restore).collect()
    }

    #[test]
    fn where_a_rule_leads_to() {
        for (rule, wanted) in [
            ("OUTPUT -j KUBE-SERVICES", Some("KUBE-SERVICES")),
            ("OUTPUT -g KUBE-SERVICES", Some("KUBE-SERVICES")),
            (r#"OUTPUT -m comment --comment "a b" -j KUBE-SERVICES"#, Some("KUBE-SERVICES")),
            (r#"OUTPUT -m comment --comment "-j KUBE-SERVICES" -j ACCEPT"#, Some("ACCEPT")),
            (r#"OUTPUT -m comment --comment "say \"hi\" -j KUBE-SERVICES \\" -j ACCEPT"#, Some("ACCEPT")),
            ("OUTPUT -m comment --comment -j -j ACCEPT", Some("ACCEPT")),
            ("OUTPUT -m comment --comment -j", None),
            (r#"OUTPUT -m comment --comment "" -j ACCEPT"#, Some("ACCEPT")),
            ("OUTPUT -j LOG --log-prefix -j", Some("LOG")),
            ("OUTPUT -j DNAT --to-destination 10.0.0.1:80", Some("DNAT")),
            ("OUTPUT -p tcp", None),
            ("OUTPUT -j", None),
        ] {
            assert_eq!(target(rule).as_deref(), wanted, "{rule}");
        }
    }

    #[test]
    fn whose_a_chain_is() {
        let theirs = ["KUBE-SERVICES", "KUBE-NODE-PORT", "KUBE-SVC-ABCDEFGHIJKLMNOP", "KUBE-FW-X", "KUBE-PROXY-CANARY"];
        let others = [
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "KUBE-MARK-DROP",
            "KUBE-ROUTER-INPUT",
            "KUBE-POD-FW-ABC",
            "KUBE-NWPLCY-ABC",
            "KUBE-SVC-",
            "KUBE-SERVICES-OLD",
            "MY-KUBE-SERVICES",
            "kube-services",
            "cali-INPUT",
            "DOCKER",
        ];
        theirs.into_iter().for_each(|chain| assert!(is_theirs(chain), "{chain}"));
        others.into_iter().for_each(|chain| assert!(!is_theirs(chain), "{chain}"));
    }

    #[test]
    fn chains_go_with_the_jumps_to_them_and_foreign_rules_stay() {
        let saved = r#"# Generated by iptables-save v1.8.9 (nf_tables)
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*raw
:PREROUTING ACCEPT [3:4]
-A PREROUTING -j NOTRACK
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BBBBBBBBBBBBBBBB - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m comment --comment "not -j KUBE-SERVICES" -j DOCKER
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A DOCKER -i docker0 -j RETURN
-A DOCKER -p tcp -g KUBE-SERVICES
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -j DNAT --to-destination 10.244.0.3:8080
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-BBBBBBBBBBBBBBBB
-A KUBE-SVC-BBBBBBBBBBBBBBBB -j KUBE-SEP-AAAAAAAAAAAAAAAA
COMMIT
"#;
        insta::assert_snapshot!(restores(saved), @r#"
        *mangle
        :KUBE-PROXY-CANARY - [0:0]
        -X KUBE-PROXY-CANARY
        COMMIT
        *nat
        :KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
        :KUBE-SERVICES - [0:0]
        :KUBE-SVC-BBBBBBBBBBBBBBBB - [0:0]
        -D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
        -D OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
        -D OUTPUT -j KUBE-SERVICES
        -D DOCKER -p tcp -g KUBE-SERVICES
        -X KUBE-SEP-AAAAAAAAAAAAAAAA
        -X KUBE-SERVICES
        -X KUBE-SVC-BBBBBBBBBBBBBBBB
        COMMIT
        "#);
        let nat = &removals(saved)[1];
        assert_eq!((nat.table.as_str(), nat.chains, nat.jumps, &nat.kept_for), ("nat", 3, 4, &None));
    }

    #[test]
    fn without_chains_of_theirs_there_is_nothing_to_do() {
        for saved in [
            "",
            "# Table `nat' is incompatible, use 'nft' tool.\n",
            "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n",
            "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n",
            ":KUBE-SERVICES - [0:0]\n",
            // What does not exist cannot be led to.
            "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m comment --comment \"-j KUBE-SERVICES\"\nCOMMIT\n",
        ] {
            assert_eq!(removals(saved), [], "{saved}");
        }
    }

    #[test]
    fn what_somebody_elses_chain_marks_packets_with_stays() {
        let saved = "*nat
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-A - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-SEP-A -s 10.244.0.3/32 -j KUBE-MARK-MASQ
COMMIT
";
        assert_eq!(restores(saved), "*nat\n:KUBE-SEP-A - [0:0]\n-X KUBE-SEP-A\nCOMMIT\n");
        assert_eq!(removals(saved)[0].kept_for.as_deref(), Some("CNI-HOSTPORT-SETMARK"));
        // A second time there is nothing more to do; kube-proxy's own chains are no users.
        assert_eq!(removals(&saved.replace(":KUBE-SEP-A - [0:0]\n", "").replace("-A KUBE-SEP-A", "-A CNI-X")), []);
        assert_eq!(removals(&saved.replace("-A CNI-HOSTPORT-SETMARK", "-A POSTROUTING"))[0].chains, 3);
    }
}
