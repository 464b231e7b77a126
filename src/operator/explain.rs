//! A decision in words. Every sentence comes from a word of [`Explanation`]; scripts read those.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use super::cli::ExplainOptions;
use super::client::query;
use super::probe::{ProbeView, probe};
use super::text::{Cell, Look, Table, colours, paint, plain, span};
use super::{Failure, ask, get, say, target};
use crate::status::StandingView;
use crate::status::explain::{Answer, Client, Explanation, Outcome, Reason, SourceReason};

/// Exit status where a connection reaches nobody, and where the kernel differs.
const DEAD_END: u8 = 2;
const DIFFERS: u8 = 3;

pub(super) fn run(socket: &Path, options: &ExplainOptions) -> Result<ExitCode, Failure> {
    let target = target::whole(socket, &options.target)?;
    let from = options.from.map(|from| from.to_string());
    let parameters = [
        ("target", Some(&*target)),
        ("from", from.as_deref()),
        ("protocol", options.proto.as_deref()),
        ("verify", options.verify.then_some("true")),
    ];
    let explanation: Explanation = ask(socket, &query("/v1/explain", &parameters))?;
    let probes: Vec<_> =
        explanation.answers.iter().map(|answer| if options.probe { probe(answer) } else { None }).collect();
    let mut out = io::stdout().lock();
    match options.output {
        Some(format) => {
            say(&mut out, format, &Probed { explanation: &explanation, probes: options.probe.then_some(&*probes) })?
        }
        None => write(&mut out, &explanation, options.probe.then_some(&*probes), colours())?,
    }
    let surprised = probes.iter().flatten().any(|probe| probe.as_explained == Some(false));
    Ok(if surprised { ExitCode::from(DIFFERS) } else { status(&explanation) })
}

/// An explanation, with what connections met.
#[derive(Serialize)]
struct Probed<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    /// By answer; `null` where nothing was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    probes: Option<&'a [Option<ProbeView>]>,
}

fn status(explanation: &Explanation) -> ExitCode {
    let differs = |one: &Answer| one.verification.as_ref().is_some_and(|seen| !seen.differences.is_empty());
    let goes = |one: &Answer| matches!(one.outcome, Outcome::Endpoint | Outcome::Forwarder);
    if explanation.answers.iter().any(differs) {
        ExitCode::from(DIFFERS)
    } else if explanation.answers.iter().all(goes) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DEAD_END)
    }
}

fn write(
    out: &mut impl Write,
    explanation: &Explanation,
    probes: Option<&[Option<ProbeView>]>,
    colours: bool,
) -> io::Result<()> {
    for (index, answer) in explanation.answers.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        write_answer(out, explanation, answer, colours)?;
        let Some(probes) = probes else { continue };
        let Some(Some(probe)) = probes.get(index) else {
            writeln!(out, "{:<10} not tried: it takes TCP to a frontend of this Service's own", "probe")?;
            continue;
        };
        let look = if probe.as_explained == Some(false) { Look::Bad } else { Look::Plain };
        let surprise = if probe.as_explained == Some(false) { ", which is not what was explained" } else { "" };
        writeln!(out, "{:<10} {}{}", "probe", plain(&probe.words()), paint(surprise, look, colours))?;
    }
    Ok(())
}

fn write_answer(out: &mut impl Write, explanation: &Explanation, answer: &Answer, colours: bool) -> io::Result<()> {
    let mut line = |what: &str, text: &str| writeln!(out, "{what:<10} {}", plain(text));
    line("target", &target_of(explanation, answer))?;
    if let Some(service) = &answer.service {
        line("service", service)?;
    }
    let client = match explanation.from {
        Some(from) => format!("{from}, {}", who(answer.client)),
        None => format!("{} (--from names one)", who(answer.client)),
    };
    line("client", &client)?;
    if !answer.source_ranges.is_empty() {
        line("ranges", &format!("only for clients in {}", answer.source_ranges.join(", ")))?;
    }
    let look = match answer.outcome {
        Outcome::Endpoint | Outcome::Forwarder => Look::Good,
        Outcome::Refused | Outcome::Dropped | Outcome::Untouched => Look::Bad,
    };
    writeln!(out, "{:<10} {}: {}", "outcome", paint(outcome(answer.outcome), look, colours), plain(&why(answer)))?;
    let mut line = |what: &str, text: &str| writeln!(out, "{what:<10} {}", plain(text));
    if let Some(other) = &answer.otherwise {
        line("otherwise", &format!("{}: {}", who(other.client), outcome(other.outcome)))?;
    }
    if matches!(answer.outcome, Outcome::Endpoint | Outcome::Forwarder) {
        let scheduler = answer.scheduler.as_deref().unwrap_or("?");
        let count = answer.candidates().count();
        let sticky = answer.affinity_seconds.map(|seconds| format!("; a client stays for {}", span(seconds.into())));
        line("next", &format!("{scheduler} chooses one of {count}{}", sticky.unwrap_or_default()))?;
    }
    if let Some(source) = answer.source {
        line("source", hidden(source))?;
    }
    for (index, step) in answer.ruleset.iter().enumerate() {
        let chain = step.chain.as_ref().map(|chain| format!("  chain {chain}")).unwrap_or_default();
        let text = format!("{} {{ {} : {} }}{chain}", step.set, step.key, step.value);
        line(if index == 0 { "ruleset" } else { "" }, &text)?;
    }
    if !answer.endpoints.is_empty() {
        let mut table = Table::new(["  ENDPOINT", "POD", "NODE", "SHARE", "WHY"]);
        for one in &answer.endpoints {
            let standing = answer.standing(one);
            let chosen = standing == StandingView::Chosen;
            let said = one.by_hand.map(|said| get::by_hand(said, Timestamp::now()));
            let reason =
                [Some(get::words(standing).to_owned()), said].into_iter().flatten().collect::<Vec<_>>().join(", ");
            table.push([
                format!("  {}", one.socket()).into(),
                one.pod.as_deref().unwrap_or_default().into(),
                one.node.as_deref().unwrap_or_default().into(),
                if chosen { format!("{:.1}%", answer.share(one) * 100.0) } else { String::new() }.into(),
                Cell::new(reason, if chosen { Look::Good } else { Look::Bad }),
            ]);
        }
        table.write(out, colours)?;
    }
    if let Some(seen) = &answer.verification {
        let verdict = match seen.differences.len() {
            0 => paint("the kernel has all of them", Look::Good, colours),
            count => paint(&format!("the kernel differs in {count}"), Look::Bad, colours),
        };
        writeln!(out, "{:<10} {} elements looked up: {verdict}", "kernel", seen.looked_up)?;
        for one in &seen.differences {
            let found = one.found.as_deref().unwrap_or("nothing");
            writeln!(out, "{:<10} {}: {}; there is {}", "", one.set, plain(&one.expected), plain(found))?;
        }
    }
    Ok(())
}

fn target_of(explanation: &Explanation, answer: &Answer) -> String {
    let Some(frontend) = &answer.frontend else { return explanation.target.clone() };
    let protocol = answer.protocol.as_deref().unwrap_or_default();
    match frontend.address {
        Some(address) => {
            let role = match &*frontend.role {
                "cluster" => "ClusterIP",
                "loadBalancer" => "load balancer address",
                "external" => "external IP",
                other => other,
            };
            format!("{protocol} {}, {role}", std::net::SocketAddr::new(address, frontend.port))
        }
        None => format!("{protocol} node port {}", frontend.port),
    }
}

fn who(client: Client) -> &'static str {
    match client {
        Client::Node => "this node itself",
        Client::Pod => "a pod of this node",
        Client::Outside => "somebody from outside",
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Endpoint => "reaches an endpoint",
        Outcome::Forwarder => "reaches an endpoint through the userspace forwarder",
        Outcome::Refused => "is rejected",
        Outcome::Dropped => "is dropped",
        Outcome::Untouched => "is left as it is",
    }
}

fn why(answer: &Answer) -> String {
    match answer.reason {
        Reason::ClusterPolicy => "the traffic policy allows all endpoints",
        Reason::LocalPolicy => "the traffic policy is Local, and there are endpoints on this node",
        Reason::ShortCircuit => "the external policy is Local, which does not bind this node and its pods",
        Reason::NoEndpoints => "no endpoint anywhere could serve",
        Reason::NoLocalEndpoints => "the traffic policy is Local, and all endpoints are on other nodes",
        Reason::SourceRanges => "the client is in none of the source ranges",
        Reason::HeldByOther => {
            let holder =
                answer.frontend.as_ref().and_then(|frontend| frontend.held_by.as_deref()).unwrap_or("another Service");
            return format!("{holder} has this frontend");
        }
        Reason::NoSuchPort => "this is a cluster address, but no Service has this port and protocol of it",
        Reason::Unallocated => "the address is in a network for ClusterIPs, and no Service has it",
        Reason::NotANodePortAddress => "this is a node port, but this address does not serve node ports",
        Reason::NoFrontend => "no Service has this address and port",
        Reason::NoService => {
            "there is no such Service, or this proxy does not serve it (headless, ExternalName, another proxy's)"
        }
        Reason::NoPort => "the Service has no such port",
        Reason::NothingServed => "the Service has no address that can be served",
    }
    .to_owned()
}

fn hidden(source: SourceReason) -> &'static str {
    match source {
        SourceReason::HiddenByMasqueradeAll => "hidden: all sources to cluster addresses are (masqueradeAll)",
        SourceReason::HiddenOffCluster => "hidden: the client is none of this node's pods",
        SourceReason::HiddenByClusterPolicy => "hidden: an external frontend with policy Cluster",
        SourceReason::HiddenForNode => "hidden: the node's own connection to an external frontend",
        SourceReason::HiddenByForwarder => "hidden: the forwarder connects by itself",
        SourceReason::KeptInCluster => "kept, unless the client itself is chosen",
        SourceReason::KeptByLocalPolicy => "kept: external policy Local (hidden if the client itself is chosen)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_end_has_a_reason_and_a_hostile_name_is_text() {
        let explanation = serde_json::json!({
            "version": "v1", "target": "x\u{1b}[2J", "answers": [
                {"client": "outside", "outcome": "dropped", "reason": "noLocalEndpoints", "service": "a\u{1b}]0;\u{7}/b\n",
                 "otherwise": {"client": "pod", "outcome": "endpoint", "reason": "shortCircuit"}},
            ],
        });
        let explanation: Explanation = serde_json::from_value(explanation).expect("an explanation");
        let mut out = Vec::new();
        write(&mut out, &explanation, Some(&[None]), false).expect("memory");
        insta::assert_snapshot!(String::from_utf8(out).expect("text"), @r"
        target     x\u{1b}[2J
        service    a\u{1b}]0;\u{7}/b\n
        client     somebody from outside (--from names one)
        outcome    is dropped: the traffic policy is Local, and all endpoints are on other nodes
        otherwise  a pod of this node: reaches an endpoint
        probe      not tried: it takes TCP to a frontend of this Service's own
        ");
    }
}
