//! The schema of an answer, as Anthropic's API takes it: every object is closed, and constraints
//! that the API does not know stand in descriptions instead, where the model reads them.

use std::borrow::Cow;

use crate::upstream::provider::tree::{Member, Tree};

/// The keywords that the API does not take.
const UNKNOWN: [&str; 24] = [
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "if",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "patternProperties",
    "prefixItems",
    "propertyNames",
    "then",
    "uniqueItems",
];
/// The same, whose absence nobody notices.
const SILENT: [&str; 3] = ["$schema", "unevaluatedItems", "unevaluatedProperties"];
/// The keywords whose values are schemas by name, lists of schemas, and schemas.
const BY_NAME: [&str; 3] = ["properties", "$defs", "definitions"];
const LISTS: [&str; 3] = ["anyOf", "allOf", "oneOf"];
const ONE: [&str; 2] = ["items", "additionalItems"];

/// The schema as the API takes it, and whether constraints were moved into descriptions.
pub(super) fn fitted<'a>(schema: &Tree<'a>) -> (Tree<'a>, bool) {
    let mut is_moved = false;
    let fitted = fit(schema, &mut is_moved);
    (fitted, is_moved)
}

fn fit<'a>(schema: &Tree<'a>, is_moved: &mut bool) -> Tree<'a> {
    let Some(members) = schema.members() else {
        return schema.clone();
    };
    let (mut kept, mut moved) = (Vec::<Member<'a>>::new(), Vec::new());
    for (key, value) in members {
        let name = &**key;
        if SILENT.contains(&name) {
            continue;
        }
        let is_large = name == "minItems" && value.whole().is_none_or(|least| least > 1);
        if UNKNOWN.contains(&name) || is_large {
            moved.push(format!("{key}: {}", value.written()));
            continue;
        }
        if name == "additionalProperties" && value.members().is_some() {
            moved.push(format!("{key}: {}", value.written()));
            continue;
        }
        let mut each = |one: &Tree<'a>| fit(one, is_moved);
        let value = match value {
            Tree::Object(named) if BY_NAME.contains(&name) => {
                let named = named.iter();
                Tree::Object(named.map(|(key, one)| (key.clone(), each(one))).collect())
            }
            Tree::List(items) if LISTS.contains(&name) => {
                Tree::List(items.iter().map(each).collect())
            }
            one if ONE.contains(&name) => each(one),
            other => other.clone(),
        };
        let key = if name == "oneOf" {
            Cow::Borrowed("anyOf")
        } else {
            key.clone()
        };
        kept.push((key, value));
    }
    let mut fitted = Tree::Object(kept);
    if is_of_objects(&fitted) {
        fitted.set("additionalProperties", Tree::boolean(false));
    }
    if !moved.is_empty() {
        *is_moved = true;
        let moved = moved.join("; ");
        let description = match fitted.get("description").and_then(Tree::text) {
            Some(own) => format!("{own} ({moved})"),
            None => moved,
        };
        fitted.set("description", Tree::string(&description));
    }
    fitted
}

/// Whether what the schema describes is an object.
fn is_of_objects(schema: &Tree<'_>) -> bool {
    match schema.get("type") {
        Some(Tree::List(types)) => types.iter().any(|one| one.is_text("object")),
        Some(one) => one.is_text("object"),
        None => schema.get("properties").is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_closed_in_their_order_and_unknown_constraints_are_told() {
        let schema = r#"{"$schema":"x","type":"object","properties":{"why":{"type":"string",
            "maxLength":9,"description":"Why."},"a":{"oneOf":[{"type":["object","null"],
            "additionalProperties":{"type":"string"}},{"type":"array","items":{"type":"object"},
            "minItems":1,"uniqueItems":true}]},"minimum":{"type":"number","minimum":0}},
            "required":["why"]}"#;
        let schema = Tree::read(schema).expect("JSON");
        let (fitted, is_moved) = fitted(&schema);
        assert!(is_moved);
        assert_eq!(
            fitted.written(),
            concat!(
                r#"{"type":"object","properties":{"why":{"type":"string","#,
                r#""description":"Why. (maxLength: 9)"},"a":{"anyOf":[{"type":["object","null"],"#,
                r#""additionalProperties":false,"#,
                r#""description":"additionalProperties: {\"type\":\"string\"}"},"#,
                r#"{"type":"array","items":{"type":"object","additionalProperties":false},"#,
                r#""minItems":1,"description":"uniqueItems: true"}]},"#,
                r#""minimum":{"type":"number","description":"minimum: 0"}},"#,
                r#""required":["why"],"additionalProperties":false}"#
            )
        );
        let plain = Tree::read(r#"{"type":"string"}"#).expect("JSON");
        assert_eq!(super::fitted(&plain), (plain, false));
    }
}
