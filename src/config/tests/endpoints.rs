//! `[[endpoints]]`.

use super::*;

const RERANK: &str = "[[endpoints]]\npath = '/v1/rerank'\n";

#[test]
fn endpoints_are_added_to_those_that_there_are() {
    let config = load("", &[]).unwrap();
    assert!(config.endpoints.added().is_empty());
    let toml = format!(
        "{RERANK}required = ['query', 'documents']\nmodel_required = true\n\
         [[endpoints]]\npath = '/v1/audio/x-1.5_a~'\n"
    );
    let config = load(&toml, &[]).unwrap();
    let [rerank, other] = config.endpoints.added() else {
        panic!("two were added");
    };
    assert_eq!(rerank.path, "/v1/rerank");
    assert_eq!(rerank.required, ["query", "documents"]);
    assert!(rerank.model_required);
    assert_eq!(other.path, "/v1/audio/x-1.5_a~");
    assert!(other.required.is_empty() && !other.model_required);
}

#[test]
fn each_fault_of_an_endpoint_is_found() {
    let path = "expected a path that begins with /v1/";
    let names = "expected names of letters, digits";
    for (line, key, message) in [
        ("path = 'rerank'", "path", path),
        ("path = '/rerank'", "path", path),
        ("path = '/v1'", "path", path),
        ("path = '/v1rerank'", "path", path),
        ("path = 'http://h/v1/rerank'", "path", path),
        ("path = '/v1/'", "path", names),
        ("path = '/v1/rerank/'", "path", names),
        ("path = '/v1//rerank'", "path", names),
        ("path = '/v1/../admin'", "path", names),
        ("path = '/v1/rerank?a=1'", "path", names),
        ("path = '/v1/re rank'", "path", names),
        ("path = '/v1/r%C3%A4nk'", "path", names),
        (
            "path = '/v1/embeddings'",
            "path",
            "this endpoint can be batched in any case",
        ),
        ("path = 1", "path", "expected a string"),
    ] {
        let expected = format!("endpoints[0].{key} (nightshift.toml:2): {message}");
        check_faults(&format!("[[endpoints]]\n{line}"), &[], &[&expected]);
    }
    for (line, key, message) in [
        ("required = 'query'", "required", "expected an array"),
        ("required = [1]", "required[0]", "expected a string"),
        ("required = ['']", "required[0]", "is empty"),
        (
            "required = ['a', 'a']",
            "required[1]",
            "stands in the list already",
        ),
        (
            "required = ['model']",
            "required[0]",
            "write `model_required = true`",
        ),
        (
            "required = ['stream']",
            "required[0]",
            "answers in a batch are never streamed",
        ),
        (
            "required = ['background']",
            "required[0]",
            "a batch runs in the background",
        ),
        (
            "model_required = 'yes'",
            "model_required",
            "expected true or false",
        ),
        (
            "requird = []",
            "requird",
            "unknown key; the nearest known one is `required`",
        ),
    ] {
        let expected = format!("endpoints[0].{key} (nightshift.toml:3): {message}");
        check_faults(&format!("{RERANK}{line}"), &[], &[&expected]);
    }
    check_faults(
        &format!("{RERANK}{RERANK}"),
        &[],
        &["endpoints[1].path (nightshift.toml:4): another endpoint has this path"],
    );
    check_faults(
        "[[endpoints]]\n",
        &[],
        &["endpoints[0] (nightshift.toml:1): `path` is missing"],
    );
}

#[test]
fn what_a_line_of_an_endpoint_asks_is_not_set() {
    let routes = "routes = [{ upstream = 'default', overrides = { documents = [] } }]";
    let toml = format!(
        "{RERANK}required = ['query', 'documents']\n[[upstreams]]\nbase_url = 'http://a'\n\
         [[models]]\nname = 'm'\ndefaults = {{ query = 'x', top_n = 3 }}\n{routes}\n"
    );
    let message = "what a line asks is written in the line alone";
    check_faults(
        &toml,
        &[],
        &[
            &format!("models[0].defaults.query (nightshift.toml:8): {message}"),
            &format!("models[0].routes[0].overrides.documents (nightshift.toml:9): {message}"),
        ],
    );
}

#[test]
fn endpoints_change_when_the_server_is_started_again() {
    let before = load("", &[]).unwrap();
    let next = load(RERANK, &[]).unwrap();
    assert_ne!(before.hash(), next.hash());
    let (running, needs_restart) = before.reloaded(next);
    assert_eq!(needs_restart, ["endpoints"]);
    assert!(running.endpoints.added().is_empty());
}
