//! The short look at a Service against the thorough one.

use proptest::prelude::*;

use super::tests::{any_change, small_engine};
use super::*;
use crate::status::{ListedFrontend, VirtualView, briefly, thoroughly};

fn views(listed: Vec<ListedFrontend>) -> Vec<VirtualView> {
    let mut views: Vec<_> = listed.into_iter().map(ListedFrontend::into_view).collect();
    views.sort_by(|a, b| (&a.service, a.address, a.port).cmp(&(&b.service, b.address, b.port)));
    views.iter_mut().for_each(|view| view.endpoints.sort_by_key(|one| one.address));
    views
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// After random histories: what the short look says of frontends and endpoints is what a survey says of them.
    #[test]
    fn whatever_is_looked_at_briefly_is_as_a_survey_has_it(history in proptest::collection::vec(any_change(), 1..30)) {
        let mut engine = small_engine();
        history.into_iter().for_each(|change| engine.take(change));
        engine.compile();
        for key in ["a", "b", "c"].map(|name| ServiceKey::new("ns", name)) {
            if let Some(brief) = briefly(&engine, &key) {
                prop_assert_eq!(views(brief), views(thoroughly(&engine, &key)));
            }
        }
    }
}

/// The property is about something: Services of every kind are looked at briefly, and some are not.
#[test]
fn the_short_look_is_taken_where_endpoints_are_alike() {
    use super::tests::{rich_service, rich_slice};
    let brief = |flavour: u16, of_slice: u8| {
        let mut engine = small_engine();
        engine.take(rich_service("a", &["10.0.0.1".into()], flavour, &[1, 2]));
        engine.take(rich_slice("a4", "a", false, &[1, 2, 3].into(), of_slice));
        engine.compile();
        let key = ServiceKey::new("ns", "a");
        assert!(!thoroughly(&engine, &key).is_empty());
        briefly(&engine, &key).map(|listed| listed.len())
    };
    assert_eq!(brief(0, 0), Some(2));
    // Node ports, load balancers, external addresses, local policies, affinity; hints by zone.
    assert!(brief(0b1_1110_0111, 3) > Some(4));
    assert_eq!([brief(0, 1), brief(0, 2)], [None, None], "some leave, all leave");
}
