//! From the text of one file to the objects in it; a pure function.
//!
//! A document is decoded twice: once for its [`Head`] (what is it, what is it called, what are the items of a list), and then, for
//! the kinds a proxy knows, into the types of [`crate::source::object`]. The head is lenient: whatever a foreign kind may look
//! like, it is recognised as foreign and skipped. A known kind is decoded strictly, and one bad object makes the whole file bad:
//! the source then keeps the file's last good content, which is safer than half of a new one.
//!
//! `kind: List` and `ServiceList`, `EndpointSliceList`, `NodeList` are lists; items of the latter three may leave out their kind, as
//! the API server does. Namespaced objects without a namespace are in `default`; a missing name is an error.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::head::{Head, Items};
use super::text::{self, Document, Fault, Format};
use crate::source::object::{EndpointSlice, Node, Service, ServiceCIDR};
use crate::source::{Kind, Object};

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// The objects with the lines on which they begin. JSON has no lines inside a document: there it is the document's.
    pub objects: Vec<(Object, usize)>,
    /// What was passed over.
    pub skipped: Vec<Skipped>,
}

/// An object of a kind that a proxy has no use for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Line on which it begins.
    pub line: usize,
    /// `apiVersion` and `kind`, joined by a blank.
    pub what: String,
}

/// Why a file is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line in the file, 1-based.
    pub line: usize,
    /// Object, field and what is wrong.
    pub reason: String,
}

/// What to do with one value: the second decoding follows it.
#[derive(Debug)]
enum Plan {
    Skip,
    One(Kind, String, usize),
    Many(Vec<Plan>),
}

/// The second decoding.
struct Fill<'p, 'o> {
    plan: &'p Plan,
    into: &'o mut Vec<(Object, usize)>,
    /// The object at hand, so that an error can name it.
    doing: &'o mut Option<&'p Plan>,
}

/// The `items` of the second decoding.
struct FillItems<'p, 'o> {
    plans: &'p [Plan],
    into: &'o mut Vec<(Object, usize)>,
    doing: &'o mut Option<&'p Plan>,
}

/// Reads a manifest. The format goes by the file's name: JSON for `*.json`, YAML for everything else.
///
/// It runs on a thread of its own, whose stack fits the nesting allowed and whose panic is an error like any other: a file must
/// not be able to bring a proxy down.
///
/// # Errors
/// The first thing in the file that is malformed or not of its declared type.
pub fn parse(file_name: &str, text: &str) -> Result<Parsed, ParseError> {
    text::on_large_stack(|| parse_here(file_name, text)).unwrap_or_else(|reason| Err(ParseError { line: 1, reason }))
}

fn parse_here(file_name: &str, text: &str) -> Result<Parsed, ParseError> {
    let format = if file_name.ends_with(".json") { Format::Json } else { Format::Yaml };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parsed = Parsed::default();
    for document in text::documents(format, text)? {
        let head = text::read(format, document, PhantomData::<Spanned<Head>>)
            .map_err(|fault| Fault { path: String::new(), ..fault })?;
        let plan = plan(head, document, None, &mut parsed.skipped)?;
        fill(format, document, &plan, &mut parsed.objects)?;
    }
    Ok(parsed)
}

/// Decides what to do with a value. `inherited` is the kind that a typed list gives to items which do not say theirs.
fn plan(
    head: Spanned<Head>,
    document: Document<'_>,
    inherited: Option<Kind>,
    skipped: &mut Vec<Skipped>,
) -> Result<Plan, ParseError> {
    let line = match usize::try_from(head.referenced.line()) {
        Ok(line @ 1..) => document.line + line - 1,
        _ => document.line,
    };
    let fail = |reason: &str| Err(ParseError { line, reason: reason.to_owned() });
    let head = match head.value {
        Head::Fields(head) => *head,
        Head::Nothing => return Ok(Plan::Skip),
        _ => return fail("not a Kubernetes object: a mapping with apiVersion and kind is expected"),
    };
    let kind = match (head.api_version.word(), head.kind.word(), inherited) {
        (None, None, Some(kind)) => kind,
        (_, None, _) => return fail("not a Kubernetes object: kind is missing"),
        (None, Some(_), _) => return fail("not a Kubernetes object: apiVersion is missing"),
        (Some("v1"), Some("Service"), _) => Kind::Service,
        (Some("v1"), Some("Node"), _) => Kind::Node,
        (Some("discovery.k8s.io/v1"), Some("EndpointSlice"), _) => Kind::EndpointSlice,
        (Some("networking.k8s.io/v1"), Some("ServiceCIDR"), _) => Kind::ServiceCIDR,
        (Some(version), Some(name), _) => {
            let inherited = match (version, name) {
                ("v1", "List") => None,
                ("v1", "ServiceList") => Some(Kind::Service),
                ("v1", "NodeList") => Some(Kind::Node),
                ("discovery.k8s.io/v1", "EndpointSliceList") => Some(Kind::EndpointSlice),
                ("networking.k8s.io/v1", "ServiceCIDRList") => Some(Kind::ServiceCIDR),
                _ => {
                    skipped.push(Skipped { line, what: format!("{version} {name}") });
                    return Ok(Plan::Skip);
                }
            };
            return match head.items {
                Some(Items::Sequence(items)) => {
                    let plans = items.into_iter().map(|item| plan(item, document, inherited, skipped));
                    Ok(Plan::Many(plans.collect::<Result<_, _>>()?))
                }
                None | Some(Items::Nothing) => Ok(Plan::Skip),
                Some(Items::Other) => fail(&format!("{name}: items: a sequence is expected")),
            };
        }
    };
    let (namespace, name) = match &head.metadata {
        Head::Fields(metadata) => (metadata.namespace.word().unwrap_or_default(), metadata.name.word()),
        _ => ("", None),
    };
    match name {
        None | Some("") => fail(&format!("{}: metadata.name is missing", kind.name())),
        Some(name) if matches!(kind, Kind::Node | Kind::ServiceCIDR) => Ok(Plan::One(kind, name.to_owned(), line)),
        Some(name) => {
            let namespace = if namespace.is_empty() { "default" } else { namespace };
            Ok(Plan::One(kind, format!("{namespace}/{name}"), line))
        }
    }
}

fn fill(
    format: Format,
    document: Document<'_>,
    plan: &Plan,
    into: &mut Vec<(Object, usize)>,
) -> Result<(), ParseError> {
    if matches!(plan, Plan::Skip) {
        return Ok(());
    }
    let mut doing = None;
    text::read(format, document, Fill { plan, into, doing: &mut doing }).map_err(|fault| {
        let mut error = ParseError::from(fault);
        if let Some(Plan::One(kind, name, _)) = doing {
            error.reason = format!("{} {name}: {}", kind.name(), error.reason);
        }
        error
    })
}

/// Gives an object its defaults and drops what is never read.
fn settle(mut object: Object) -> Object {
    let (meta, namespaced) = match &mut object {
        Object::Service(object) => (&mut object.metadata, true),
        Object::EndpointSlice(object) => (&mut object.metadata, true),
        Object::Node(object) => (&mut object.metadata, false),
        Object::ServiceCIDR(object) => (&mut object.metadata, false),
    };
    meta.managed_fields = None;
    if !namespaced {
        meta.namespace = None;
    } else if meta.namespace.as_deref().unwrap_or_default().is_empty() {
        meta.namespace = Some("default".to_owned());
    }
    object
}

// === impl ParseError ===

impl From<Fault> for ParseError {
    fn from(fault: Fault) -> Self {
        let Fault { line, path, reason } = fault;
        ParseError { line, reason: if path.is_empty() { reason } else { format!("{path}: {reason}") } }
    }
}

// === impl Fill ===

impl<'de> DeserializeSeed<'de> for Fill<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        let (kind, line) = match self.plan {
            Plan::Skip => return IgnoredAny::deserialize(from).map(drop),
            Plan::Many(_) => return from.deserialize_map(self),
            Plan::One(kind, _, line) => (*kind, *line),
        };
        *self.doing = Some(self.plan);
        let object = match kind {
            Kind::Service => Object::Service(Box::new(Service::deserialize(from)?)),
            Kind::EndpointSlice => Object::EndpointSlice(Box::new(EndpointSlice::deserialize(from)?)),
            Kind::Node => Object::Node(Box::new(Node::deserialize(from)?)),
            Kind::ServiceCIDR => Object::ServiceCIDR(Box::new(ServiceCIDR::deserialize(from)?)),
        };
        *self.doing = None;
        self.into.push((settle(object), line));
        Ok(())
    }
}

impl<'de> Visitor<'de> for Fill<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let plans = if let Plan::Many(plans) = self.plan { plans.as_slice() } else { &[] };
        while let Some(key) = map.next_key::<Head>()? {
            if key.word() == Some("items") && !plans.is_empty() {
                map.next_value_seed(FillItems { plans, into: self.into, doing: self.doing })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for FillItems<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for FillItems<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for plan in self.plans {
            if seq.next_element_seed(Fill { plan, into: self.into, doing: self.doing })?.is_none() {
                return Err(de::Error::invalid_length(self.plans.len(), &self));
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parsed: &Parsed) -> Vec<String> {
        parsed.objects.iter().map(|(o, line)| format!("{line} {} {}", o.kind().name(), o.key())).collect()
    }

    fn error(file: &str, text: &str) -> String {
        let error = parse(file, text).unwrap_err();
        format!("{}: {}", error.line, error.reason)
    }

    #[test]
    fn documents_lists_and_foreign_kinds() {
        let text = "\
# a shop
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: 3
items: no
---
kind: List
apiVersion: v1
items:
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: web-1}
  addressType: IPv4
  endpoints: null
- apiVersion: v1
  kind: ConfigMap
- apiVersion: v1
  kind: List
  items:
  - apiVersion: v1
    kind: Node
    metadata: {name: n1, namespace: odd}
---
kind: ServiceList
apiVersion: v1
metadata: {}
items:
  - metadata: {name: bare}
--- ~
---
kind: ServiceList
apiVersion: v1
items:
";
        let parsed = parse("a.yaml", text).unwrap();
        assert_eq!(
            names(&parsed),
            ["2 Service shop/web", "15 EndpointSlice default/web-1", "25 Node n1", "33 Service default/bare"]
        );
        let skipped: Vec<_> = parsed.skipped.iter().map(|s| (s.line, s.what.as_str())).collect();
        assert_eq!(skipped, [(7, "apps/v1 Deployment"), (20, "v1 ConfigMap")]);
    }

    #[test]
    fn json_means_the_same_as_yaml() {
        let json = r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"Service","metadata":{"name":"a","managedFields":[{"manager":"x"}]},
             "spec":{"ports":[{"port":80}]}}]}
            {"apiVersion":"v1","kind":"Service","metadata":{"name":"b"}}"#;
        let parsed = parse("a.json", json).unwrap();
        assert_eq!(names(&parsed), ["1 Service default/a", "4 Service default/b"]);
        let yaml = parse("a.yaml", &json.replacen("]}\n            {", "]}\n---\n{", 1)).unwrap();
        let objects = |parsed: Parsed| parsed.objects.into_iter().map(|(object, _)| object).collect::<Vec<_>>();
        assert_eq!(objects(parsed), objects(yaml));
    }

    #[test]
    fn errors_name_line_object_field_and_value() {
        let eighty =
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n  - port: 80\n  - port: eighty\n";
        let found = error("a.yaml", &format!("---\n---\n{eighty}"));
        assert_eq!(found, "9: Service default/web: spec.ports[1].port: invalid i64 at `eighty`");

        let found = error(
            "a.json",
            "\n{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\n{\"apiVersion\":\"v1\",\"kind\":\"Service\",\n\
             \"metadata\":{\"name\":\"w\"},\"spec\":{\"ports\":[{\"port\":\n\"eighty\"}]}}]}",
        );
        assert_eq!(
            found,
            "5: Service default/w: items[0].spec.ports[0].port: invalid type: string \"eighty\", expected i64"
        );

        let table = [
            ("a.yaml", "a: b", "1: not a Kubernetes object: kind is missing"),
            ("a.yaml", "\nkind: Service", "2: not a Kubernetes object: apiVersion is missing"),
            ("a.yaml", "\n- 1", "2: not a Kubernetes object: a mapping with apiVersion and kind is expected"),
            ("a.yaml", "kind: Service\napiVersion: v1", "1: Service: metadata.name is missing"),
            ("a.yaml", "kind: Service\napiVersion: v1\nmetadata: {name: \"\"}", "1: Service: metadata.name is missing"),
            ("a.yaml", "kind: List\napiVersion: v1\nitems: 3", "1: List: items: a sequence is expected"),
            ("a.json", "{", "1: EOF while parsing an object"),
            ("a.json", "{\"items\":[],\n\"items\":[]}", "2: duplicate field `items`"),
        ];
        for (file, text, expected) in table {
            let found = error(file, text);
            assert!(found.starts_with(expected), "{text:?}: {found}");
        }
        // What precisely is said is the library's affair; where it is, is ours.
        for (text, line) in [("a: 1\na: 2", "2:"), ("b: 1\na: [1,\n2", "2:"), ("a: *x", "1:"), ("---\n\tb: 1\n", "2:")]
        {
            assert!(error("a.yaml", text).starts_with(line), "{text:?}: {}", error("a.yaml", text));
        }
    }

    #[test]
    fn anchors_work_and_bombs_do_not() {
        let shared = "apiVersion: v1\nkind: Service\nmetadata: &m\n  name: a\n  labels: &l {pointsman.dev/x: y}\n  annotations: *l\n";
        let parsed = parse("a.yaml", shared).unwrap();
        let Object::Service(service) = &parsed.objects[0].0 else { panic!("{parsed:?}") };
        assert_eq!(service.metadata.labels.as_ref().map(|labels| labels.len()), Some(1));
        assert_eq!(service.metadata.labels, service.metadata.annotations);

        let mut bomb = "apiVersion: v1\nkind: List\na0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let refs = vec![format!("*a{}", level - 1); 9].join(", ");
            bomb += &format!("a{level}: &a{level} [{refs}]\n");
        }
        bomb += "items: *a11\n";
        parse("a.yaml", &bomb).unwrap_err();

        let huge = "x".repeat(1 << 20);
        let scalars = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: {{a: &a {huge}}}}}\n\
             endpoints:\n- addresses: [{}]\n",
            vec!["*a"; 2000].join(", ")
        );
        parse("a.yaml", &scalars).unwrap_err();
    }

    #[test]
    fn depth_is_an_error_not_a_crash() {
        let head = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nstatus: ";
        parse("a.yaml", &format!("{head}{}", "[".repeat(100_000))).unwrap_err();
        parse("a.yaml", &format!("{head}{}", "{a: ".repeat(100_000))).unwrap_err();
        parse("a.yaml", &format!("{head}\n{}", (0..3000).map(|n| " ".repeat(n + 1) + "a:\n").collect::<String>()))
            .unwrap_err();
        parse("a.yaml", &"- ".repeat(100_000)).unwrap_err();
        parse("a.json", &"[".repeat(1_000_000)).unwrap_err();
        let lists = r#"{"apiVersion":"v1","kind":"List","items":["#.repeat(100_000);
        parse("a.json", &lists).unwrap_err();
        parse("a.yaml", &lists).unwrap_err();
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics(text in "\\PC{0,200}", soup in "[-:{}\\[\\]&*!|>'\"%@`#, \na-c]{0,200}") {
            for text in [text, soup] {
                let _ = parse("a.yaml", &text);
                let _ = parse("a.json", &text);
            }
        }
    }
}
