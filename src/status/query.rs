//! The parameters of a query, and what is wrong with them.
//!
//! Names count as they are written; of two with the same name the first counts; space around a value does not, and an empty value is none. Parameters that nobody
//! asks for are passed over.

use crate::model::Protocol;

/// Names and values, as they came.
pub type Parameters = [(String, String)];

/// A query that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}={value:?}: {reason}")]
pub struct QueryError {
    /// The parameter.
    pub parameter: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The value of a parameter.
pub fn get<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    let value = parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.trim());
    value.filter(|value| !value.is_empty())
}

/// Whether a parameter is there and says yes: `name`, `name=1` or `name=true`.
pub fn is_set(parameters: &Parameters, name: &str) -> bool {
    let value = parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.trim());
    matches!(value, Some("" | "1" | "true"))
}

/// What a parameter is read as, if it is there.
///
/// # Errors
/// It is there, and `parse` makes nothing of it.
pub fn read<T>(
    parameters: &Parameters,
    name: &'static str,
    reason: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, QueryError> {
    let Some(text) = get(parameters, name) else { return Ok(None) };
    parse(text).map(Some).ok_or_else(|| wrong(name, text, reason))
}

/// The parameter `protocol`.
///
/// # Errors
/// As [`read`].
pub fn protocol(parameters: &Parameters) -> Result<Option<Protocol>, QueryError> {
    let parse = |text: &str| Protocol::from_kubernetes(Some(&text.to_uppercase()));
    read(parameters, "protocol", "neither tcp, udp nor sctp", parse)
}

/// Says what is wrong.
pub fn wrong(parameter: &'static str, value: &str, reason: &'static str) -> QueryError {
    QueryError { parameter, value: value.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let given = [("a", " 1 "), ("a", "2"), ("empty", " "), ("flag", ""), ("no", "false"), ("no", "1")];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!((get(&given, "a"), get(&given, "empty"), get(&given, "A")), (Some("1"), None, None));
        assert_eq!(
            ["a", "empty", "flag", "no", "b"].map(|name| is_set(&given, name)),
            [true, true, true, false, false]
        );
        let number = |name| read(&given, name, "not a number", |text| text.parse::<u8>().ok());
        assert_eq!((number("a"), number("b")), (Ok(Some(1)), Ok(None)));
        assert_eq!(number("no").expect_err("none").to_string(), "no=\"false\": not a number");
    }
}
