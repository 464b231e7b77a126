//! Label and field selectors, evaluated as the API server evaluates them.
//!
//! A label selector is a comma separated list of requirements, all of which must hold: `key`, `!key`, `key=value`, `key==value`,
//! `key!=value`, `key in (a,b)`, `key notin (a,b)`. As in Kubernetes, `!=` and `notin` also hold when the key is absent.
//! A field selector knows `=`, `==` and `!=` over a dotted path into the object (`metadata.name`, `spec.clusterIP`); an absent
//! field counts as the empty string. A real server offers only a few fields per kind; the double offers every scalar.
//!
//! Proven by the tests below.

use serde_json::Value;

/// A parsed label or field selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

// === impl Selector ===

impl Selector {
    /// Parses a selector; `Err` carries the message for a 400 answer.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            let term = term.trim();
            if !term.is_empty() {
                requirements.push(Requirement::parse(term)?);
            }
        }
        Ok(Self(requirements))
    }

    /// Whether the object's labels satisfy every requirement.
    pub fn matches_labels(&self, object: &Value) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let labels = object.pointer("/metadata/labels");
        self.matches(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str).map(str::to_owned))
    }

    /// Whether the object's fields satisfy every requirement.
    pub fn matches_fields(&self, object: &Value) -> bool {
        self.matches(|path| {
            let field = path.split('.').try_fold(object, |value, part| value.get(part));
            Some(match field {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            })
        })
    }

    fn matches(&self, value_of: impl Fn(&str) -> Option<String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => value_of(key).is_some(),
            Requirement::Absent(key) => value_of(key).is_none(),
            Requirement::In(key, values) => value_of(key).is_some_and(|value| values.contains(&value)),
            Requirement::NotIn(key, values) => value_of(key).is_none_or(|value| !values.contains(&value)),
        })
    }
}

// === impl Requirement ===

impl Requirement {
    fn parse(term: &str) -> Result<Self, String> {
        if let Some(key) = term.strip_prefix('!') {
            return Ok(Self::Absent(checked(key, term)?));
        }
        if let Some((key, value)) = term.split_once("!=") {
            return Ok(Self::NotIn(checked(key, term)?, vec![value.trim().to_owned()]));
        }
        if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            return Ok(Self::In(checked(key, term)?, vec![value.trim().to_owned()]));
        }
        for (word, make) in [(" notin ", Self::NotIn as fn(_, _) -> _), (" in ", Self::In as fn(_, _) -> _)] {
            if let Some((key, list)) = term.split_once(word) {
                let list = list.trim().strip_prefix('(').and_then(|list| list.strip_suffix(')'));
                let list = list.ok_or_else(|| format!("unable to parse requirement: {term}"))?;
                return Ok(make(checked(key, term)?, list.split(',').map(|value| value.trim().to_owned()).collect()));
            }
        }
        Ok(Self::Exists(checked(term, term)?))
    }
}

/// A key without blanks; anything else is what a real server refuses as well.
fn checked(key: &str, term: &str) -> Result<String, String> {
    let key = key.trim();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '-' | '_');
    if key.is_empty() || !key.chars().all(legal) {
        return Err(format!("unable to parse requirement: {term}"));
    }
    Ok(key.to_owned())
}

/// Splits at commas that are not inside parentheses.
fn split_terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels() {
        let object = json!({"metadata": {"labels": {"app": "web", "empty": ""}}});
        for (selector, holds) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!service.kubernetes.io/headless", true),
            ("app=web", true),
            ("app==web", true),
            ("app=api", false),
            ("app!=web", false),
            ("other!=web", true),
            ("empty=", true),
            ("app in (api, web)", true),
            ("app notin (api,web)", false),
            ("other notin (api)", true),
            ("other in (api)", false),
            ("app in (api,web),!other", true),
            ("app,other", false),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches_labels(&object), holds, "{selector}");
        }
        assert!(Selector::parse("!other").unwrap().matches_labels(&json!({"metadata": {}})));
    }

    #[test]
    fn fields() {
        let object = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "None", "port": 80}});
        for (selector, holds) in [
            ("metadata.name=web", true),
            ("metadata.name=api", false),
            ("spec.clusterIP!=None", false),
            ("spec.clusterIP==None", true),
            ("spec.missing!=None", true),
            ("spec.port=80", true),
            ("metadata.name=web,spec.clusterIP!=None", false),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches_fields(&object), holds, "{selector}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for selector in ["!", "=web", "app in web", "a b"] {
            assert!(Selector::parse(selector).is_err(), "{selector}");
        }
    }
}
