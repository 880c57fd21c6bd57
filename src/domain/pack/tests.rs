use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::usage;

fn read(body: &str) -> Embedding<'_> {
    Embedding::read(body).expect("a request")
}

fn are_alike(one: &str, other: &str) -> bool {
    read(one).parameters() == read(other).parameters()
}

#[test]
fn requests_are_put_together_whose_parameters_are_the_same_in_any_order() {
    let body = r#"{"model":"m","input":"a","dimensions":2}"#;
    assert!(are_alike(
        body,
        r#"{"dimensions": 2, "input": ["b","c"], "model": "m"}"#
    ));
    for other in [
        r#"{"model":"m","input":"a"}"#,
        r#"{"model":"m","input":"a","dimensions":3}"#,
        r#"{"model":"m","input":"a","dimensions":2,"user":"u"}"#,
        r#"{"model":"m","input":[1,2],"dimensions":2}"#,
        r#"{"model":"m","input":"a","dimensions":2,"dimensions":2}"#,
    ] {
        assert!(!are_alike(body, other), "{other}");
    }
}

#[test]
fn an_input_is_a_text_or_tokens_or_a_list_of_either() {
    for (input, inputs) in [
        (r#""a""#, 1),
        (r#"["a"]"#, 1),
        (r#"["a", "", "b"]"#, 3),
        ("[1,2,3]", 1),
        ("[ [1,2], [3] ]", 2),
    ] {
        let body = format!(r#"{{"model":"m","input":{input}}}"#);
        assert_eq!(read(&body).inputs, inputs, "{input}");
    }
    for input in [
        "[]",
        "null",
        "7",
        r#"["a",1]"#,
        r#"[{"type":"text"}]"#,
        r#"["a",[1]]"#,
    ] {
        let body = format!(r#"{{"model":"m","input":{input}}}"#);
        assert_eq!(Embedding::read(&body), None, "{input}");
    }
    assert_eq!(Embedding::read(r#"{"input":"a","input":"b"}"#), None);
    assert_eq!(Embedding::read("[]"), None);
}

#[test]
fn a_body_for_several_has_all_their_inputs_and_the_words_of_the_first() {
    let bodies = [
        r#"{ "model":"m", "input" : "a\u00e9" , "dimensions":1e1 }"#,
        r#"{"dimensions":1e1,"model":"m","input":[ "b","" ]}"#,
        r#"{"model":"m","dimensions":1e1,"input":["c"]}"#,
    ];
    let requests = bodies.map(read);
    assert_eq!(
        together(&requests),
        r#"{ "model":"m", "input" : ["a\u00e9", "b","" ,"c"] , "dimensions":1e1 }"#
    );
    let tokens = [r#"{"input":[1, 2]}"#, r#"{"input":[[3],[4]]}"#].map(read);
    assert_eq!(together(&tokens), r#"{"input":[[1, 2],[3],[4]]}"#);
}

const fn part(inputs: usize, bytes: usize) -> Part {
    Part { inputs, bytes }
}

#[test]
fn each_gets_its_vectors_and_its_part_of_the_tokens() {
    let answer = concat!(
        r#"{"object":"list","id":"e-1","data":["#,
        r#"{"object":"embedding","index":2,"embedding":[3.0]},"#,
        r#"{"object":"embedding","index":0,"embedding":[1.50]},"#,
        r#"{"index":1,"embedding":"AAAA"}],"#,
        r#""model":"m","usage":{"prompt_tokens":10,"total_tokens":10,"#,
        r#""prompt_tokens_details":{"cached_tokens":3},"cost":0.5}}"#,
    );
    let answers = apart(answer, &[part(2, 5), part(1, 2)]).expect("an answer");
    assert_eq!(
        answers,
        [
            concat!(
                r#"{"object":"list","id":"e-1","data":["#,
                r#"{"object":"embedding","index":0,"embedding":[1.50]},"#,
                r#"{"index":1,"embedding":"AAAA"}],"#,
                r#""model":"m","usage":{"prompt_tokens":7,"total_tokens":7,"#,
                r#""prompt_tokens_details":{"cached_tokens":2},"cost":0.3571429}}"#,
            ),
            concat!(
                r#"{"object":"list","id":"e-1","data":["#,
                r#"{"object":"embedding","index":0,"embedding":[3.0]}],"#,
                r#""model":"m","usage":{"prompt_tokens":3,"total_tokens":3,"#,
                r#""prompt_tokens_details":{"cached_tokens":1},"cost":0.1428571}}"#,
            ),
        ]
    );
}

#[test]
fn an_answer_with_other_vectors_than_were_asked_for_is_none() {
    for data in [
        "[]",
        r#"[{"index":0}]"#,
        r#"[{"index":0},{"index":0}]"#,
        r#"[{"index":1},{"index":2}]"#,
        r#"[{"index":0},{"index":-1}]"#,
        r#"[{"index":0},7]"#,
        "{}",
    ] {
        let answer = format!(r#"{{"data":{data}}}"#);
        assert!(apart(&answer, &[part(1, 1), part(1, 1)]).is_err(), "{data}");
    }
    assert!(apart("{}", &[part(1, 1)]).is_err());
    assert!(apart("[]", &[part(1, 1)]).is_err());
    // Vectors without numbers are in the order of the inputs.
    let answers = apart(r#"{"data":[{"e":1},{"e":2}]}"#, &[part(1, 1), part(1, 1)]);
    assert_eq!(
        answers.unwrap(),
        [r#"{"data":[{"e":1}]}"#, r#"{"data":[{"e":2}]}"#]
    );
}

proptest! {
    /// A server that embeds each input by itself cannot be told from one that is asked for all at
    /// once.
    #[test]
    fn what_is_put_together_and_taken_apart_is_what_each_alone_would_get(
        lines in proptest::collection::vec(proptest::collection::vec("[a-z\"é ]{0,8}", 1..4), 1..9),
        tokens in 0_i64..100_000,
        is_loose in any::<bool>(),
        is_reversed in any::<bool>(),
    ) {
        let bodies: Vec<String> = lines
            .iter()
            .map(|texts| match &texts[..] {
                [one] => json!({"model": "m", "input": one}).to_string(),
                many => json!({"input": many, "model": "m"}).to_string(),
            })
            .collect();
        let requests: Vec<Embedding<'_>> = bodies.iter().map(|body| read(body)).collect();
        let asked: Value = serde_json::from_str(&together(&requests)).expect("JSON");
        let texts = lines.concat();
        prop_assert_eq!(&asked["input"], &json!(texts));

        let vector = |(index, text): (usize, &String)| json!({
            "object": "embedding", "index": index, "embedding": [text.len(), text],
        });
        let mut data: Vec<Value> = texts.iter().enumerate().map(vector).collect();
        if is_reversed {
            data.reverse();
        }
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
        let answer = json!({"object": "list", "data": data, "usage": usage});
        let answer = if is_loose { format!("{answer:#}") } else { answer.to_string() };
        let parts: Vec<Part> = requests.iter().map(Embedding::part).collect();
        let answers = apart(&answer, &parts).expect("an answer");
        let mut sum = 0;
        for (own, texts) in answers.iter().zip(&lines) {
            sum += usage::read(own.as_bytes()).expect("usage").input_tokens;
            let own: Value = serde_json::from_str(own).expect("JSON");
            let expected: Vec<Value> = texts.iter().enumerate().map(vector).collect();
            prop_assert_eq!(&own["data"], &json!(expected));
        }
        prop_assert_eq!(sum, tokens);
    }
}
