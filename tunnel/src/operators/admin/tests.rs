//! Checks that the OpenAPI document has all routes and is up to date.

use std::collections::BTreeSet;

use serde_json::Value;

/// Every method of every route in the router's source, such as `get /status`.
fn routed() -> BTreeSet<String> {
    let source = include_str!("../admin.rs");
    let routes = source.split(".route(").skip(1);
    routes
        .flat_map(|rest| {
            let path = rest.trim_start().strip_prefix('"').expect("a path");
            let (path, rest) = path.split_once('"').expect("the path's end");
            let handlers = rest.split(".with_state").next().unwrap_or(rest);
            ["get(", "post(", "delete(", "put(", "patch("]
                .into_iter()
                .filter(|method| handlers.contains(method))
                .map(|method| format!("{}{path}", method.replace('(', " ")))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn the_openapi_document_has_every_route_and_is_checked_in() {
    let text = towpath_daemon::openapi::document::<super::Document>();
    let document: Value = serde_json::from_str(&text).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let documented: BTreeSet<String> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| format!("{method} {path}"))
        })
        .collect();
    assert!(routed().len() >= 17, "{:?}", routed());
    assert_eq!(routed(), documented, "routes left, document right");

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tunnel-openapi.json");
    if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
        std::fs::write(file, &text).unwrap();
    }
    let checked_in = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        checked_in == text,
        "docs/tunnel-openapi.json is stale: run the tests with TOWPATH_UPDATE_DOCS=1"
    );
}
