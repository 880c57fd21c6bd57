//! Prices, and what models can do.

use super::*;

const PRICING: &str = "[pricing]\ncurrency = 'usd'\n";

fn inputs(price: &str) -> Option<String> {
    let config = load(&format!("{UPSTREAM}price = {price}\n{PRICING}"), &[]).unwrap();
    config.upstreams[0]
        .price
        .map(|price| price.input.to_string())
}

#[test]
fn prices_are_exact_however_they_are_written() {
    for (written, input) in [
        ("0.1", "0.1"),
        ("'0.1'", "0.1"),
        ("3", "3"),
        ("0", "0"),
        ("2e-8", "0.00000002"),
        ("0.000000001", "0.000000001"),
        ("'0.123456789'", "0.123456789"),
        ("1_000_000", "1000000"),
    ] {
        let price = format!("{{ input = {written} }}");
        assert_eq!(inputs(&price).as_deref(), Some(input), "{written}");
    }
}

#[test]
fn output_of_long_calls_costs_as_ever_where_nothing_else_is_said() {
    for (above, output) in [("input = 2", "10"), ("input = 2, output = 15", "15")] {
        let price =
            format!("{{ input = 1, output = 10, above = {{ tokens = 200_000, {above} }} }}");
        let config = load(&format!("{UPSTREAM}price = {price}\n{PRICING}"), &[]).unwrap();
        let price = config.upstreams[0].price.expect("has one");
        let above = price.above.expect("has one");
        assert_eq!(above.output.to_string(), output, "{above:?}");
    }
}

#[test]
fn each_fault_of_a_price_is_found() {
    let upstream = format!("{PRICING}{UPSTREAM}");
    for (price, place, message) in [
        (
            "{ input = -1 }",
            ".input",
            "expected a number from 0 to 1000000",
        ),
        (
            "{ input = 1_000_001 }",
            ".input",
            "expected a number from 0 to 1000000",
        ),
        (
            "{ input = '0.0000000001' }",
            ".input",
            "expected a number from 0 to",
        ),
        (
            "{ input = 'cheap' }",
            ".input",
            "expected a number from 0 to",
        ),
        ("{ input = nan }", ".input", "expected a number from 0 to"),
        (
            "{ input = true }",
            ".input",
            "expected a number, found a boolean",
        ),
        (
            "{ input = 1, outputs = 2 }",
            ".outputs",
            "unknown key; the nearest known one is `output`",
        ),
        ("{ output = 2 }", "", "`input` is missing"),
        (
            "{ input = 1, above = { tokens = 9 } }",
            ".above",
            "`input` is missing",
        ),
        (
            "{ input = 1, above = { tokens = 0, input = 1 } }",
            ".above.tokens",
            "must be from 1 to",
        ),
        ("2", "", "expected a table"),
    ] {
        let expected = format!("upstreams[0].price{place} (nightshift.toml:6): {message}");
        check_faults(&format!("{upstream}price = {price}"), &[], &[&expected]);
    }
    check_faults(
        "[pricing]\ncurrency = 'dollar'",
        &[],
        &["pricing.currency (nightshift.toml:2): expected the three letters of a currency"],
    );
}

#[test]
fn a_price_without_a_currency_is_a_fault_wherever_it_stands() {
    let price = "price = { input = 1 }";
    let toml = format!(
        "{UPSTREAM}{price}\n[[capabilities]]\nmodel = 'm'\n{price}\n[[models]]\nname = 'm'\n\
         routes = [{{ upstream = 'a', {price} }}]\n"
    );
    let message = "says of no currency what it is in";
    let places = [
        "upstreams[0].price",
        "capabilities[0].price",
        "models[0].routes[0].price",
    ];
    let lines = [4, 7, 10];
    let expected: Vec<String> = places
        .iter()
        .zip(lines)
        .map(|(place, line)| format!("{place} (nightshift.toml:{line}): {message}"))
        .collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    check_faults(&toml, &[], &expected);
}

#[test]
fn each_fault_of_capabilities_is_found() {
    for (line, place, message) in [
        ("model = 'a*b'", ".model", "a name has one `*` at most"),
        (
            "model = 'm'\nupstream = 'b'",
            ".upstream",
            "no upstream is named \"b\"; the nearest is \"a\"",
        ),
        ("model = 'm'\noutput = 0", ".output", "must be from 1 to"),
        (
            "model = 'm'\ntool = true",
            ".tool",
            "unknown key; the nearest known one is `tools`",
        ),
        (
            "model = 'm'\nrefuses = 'seed'",
            ".refuses",
            "expected an array",
        ),
    ] {
        let number = 4 + line.lines().count();
        let expected = format!("capabilities[0]{place} (nightshift.toml:{number}): {message}");
        check_faults(
            &format!("{UPSTREAM}[[capabilities]]\n{line}"),
            &[],
            &[&expected],
        );
    }
    let expected = "capabilities[0] (nightshift.toml:4): `model` is missing";
    check_faults(
        &format!("{UPSTREAM}[[capabilities]]\noutput = 1"),
        &[],
        &[expected],
    );
}
