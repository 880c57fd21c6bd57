//! `[[tasks]]`: a name for what is to be done, in a line or for a whole batch.

use std::collections::BTreeSet;

use nightshift::internals::simulate::{Options, Simulator};
use serde_json::{Value, json};

use crate::support::{CHAT, Server, eventually, granting, on_every_engine};

/// Two upstreams, a model at each, and a task that both do.
struct World {
    simulators: [Simulator; 2],
    server: Server,
}

impl World {
    async fn new(options: [Options; 2], of_models: &str) -> Self {
        let mut simulators = Vec::new();
        for options in options {
            let started = Simulator::start("127.0.0.1:0", options).await;
            simulators.push(started.expect("starts"));
        }
        let mut toml = String::new();
        for (place, simulator) in simulators.iter().enumerate() {
            let url = simulator.base_url();
            toml += &format!("[[upstreams]]\nname = \"u{place}\"\nbase_url = \"{url}\"\n");
        }
        toml += &format!(
            "[[models]]\nname = \"small\"\n{of_models}defaults = {{ a = \"model\", b = \"model\" }}\n\
             overrides = {{ x = \"model\", y = \"model\" }}\n\
             routes = [{{ upstream = \"u0\", model = \"vendor/small\", \
             defaults = {{ a = \"route\", b = \"route\", c = \"route\" }}, \
             overrides = {{ x = \"route\" }} }}]\n\
             [[models]]\nname = \"large-*\"\nroutes = [{{ upstream = \"u1\" }}]\n\
             [[tasks]]\nname = \"summary\"\nmodels = [\"small\", \"large-1\"]\n\
             defaults = {{ a = \"task\" }}\n\
             overrides = {{ x = \"task\", y = \"task\", z = \"task\" }}\n"
        );
        let server = Server::with(&toml).await;
        let simulators = simulators.try_into().ok().expect("are two");
        Self { simulators, server }
    }
}

/// A line that may name a model.
fn line(id: &str, model: Option<&str>, more: Value) -> String {
    let mut body = json!({"messages": [], "simulate": {"echo": true}});
    if let Some(model) = model {
        body["model"] = model.into();
    }
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    let line = json!({"custom_id": id, "method": "POST", "url": CHAT, "body": body});
    format!("{line}\n")
}

/// What a line's upstream was sent.
fn sent(output: &Value) -> Value {
    let body = &output["response"]["body"]["echo"]["body"];
    serde_json::from_str(body.as_str().expect("is text")).expect("is JSON")
}

fn task_of_batch(file: &str, extension: Value) -> Value {
    let mut body = json!({
        "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
    });
    if let (Value::Object(body), Value::Object(more)) = (&mut body, extension) {
        body.extend(more);
    }
    body
}

async fn a_task_stands_for_its_models_and_fills_in_what_lines_leave_out() {
    let world = World::new([(); 2].map(|()| Options::default()), "").await;
    let lines: String = (0..40)
        .map(|number| {
            line(
                &number.to_string(),
                Some("summary"),
                json!({"b": "line", "u": 1}),
            )
        })
        .collect();
    let batch = world.server.run(lines, CHAT).await;
    assert_eq!(batch.counts.completed, 40, "{batch}");
    let output = world.server.output(&batch).await;
    let models = output.iter().map(|line| sent(line)["model"].clone());
    let models: BTreeSet<String> = models.map(|model| model.to_string()).collect();
    let expected = ["\"large-1\"", "\"vendor/small\""].map(str::to_owned);
    assert_eq!(models, expected.into(), "each under the name of its route");
    for line in &output {
        let sent = sent(line);
        let is_small = sent["model"] == "vendor/small";
        let of_small = |value: &str| if is_small { json!(value) } else { Value::Null };
        assert_eq!(sent["a"], "task", "of route < model < task");
        assert_eq!(sent["b"], "line");
        assert_eq!(sent["c"], of_small("route"));
        assert_eq!(sent["u"], 1, "unknown keys stay");
        let over = |of_small: &'static str| if is_small { of_small } else { "task" };
        assert_eq!(sent["x"], over("route"), "of task < model < route");
        assert_eq!(sent["y"], over("model"));
        assert_eq!(sent["z"], "task");
    }
}

async fn a_batch_names_the_task_of_all_its_lines() {
    let world = World::new([(); 2].map(|()| Options::default()), "").await;
    let none = json!({});
    let file = world.server.upload_batch(
        line("none", None, none.clone())
            + &line("one", Some("small"), none.clone())
            + &line("other", Some("large-1"), none.clone())
            + &line("task", Some("summary"), none.clone()),
    );
    let file = file.await;
    for extension in [
        json!({"nightshift": {"task": "summary"}}),
        json!({"metadata": {"nightshift.task": "summary"}}),
    ] {
        let batch = world.server.create(&task_of_batch(&file, extension)).await;
        let batch = world.server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 4, "{batch}");
        for line in world.server.output(&batch).await {
            let sent = sent(&line);
            assert_eq!(sent["z"], "task", "{sent}");
            match line["custom_id"].as_str() {
                Some("one") => assert_eq!(sent["model"], "vendor/small"),
                Some("other") => assert_eq!(sent["model"], "large-1"),
                _ => {}
            }
        }
    }
    // Without a task a line has to name a model; other keys of the metadata say nothing.
    for extension in [json!({}), json!({"metadata": {"task": "summary"}})] {
        let batch = world.server.create(&task_of_batch(&file, extension)).await;
        let batch = world.server.ended(&batch).await;
        assert_eq!(batch.status, "failed");
        let errors = world.server.get(&batch.path()).await["errors"]["data"].clone();
        assert_eq!(errors[0]["code"], "missing_required_parameter", "{errors}");
        assert_eq!(errors[0]["line"], 1, "{errors}");
        assert_eq!(errors.as_array().map(Vec::len), Some(1), "{errors}");
    }
}

async fn what_a_task_does_not_have_is_the_lines_error() {
    let world = World::new([(); 2].map(|()| Options::default()), "").await;
    let none = json!({});
    let file = world.server.upload_batch(
        line("a", None, none.clone())
            + &line("b", Some("large-2"), none.clone())
            + &line("c", None, json!({"messages": null})),
    );
    let file = file.await;
    let found = async |task: &str| {
        let extension = json!({"nightshift": {"task": task}});
        let batch = world.server.create(&task_of_batch(&file, extension)).await;
        let batch = world.server.ended(&batch).await;
        assert_eq!(batch.status, "failed");
        let errors = world.server.get(&batch.path()).await["errors"]["data"].clone();
        let errors = errors.as_array().cloned().expect("are listed").into_iter();
        let found = errors.map(|error| (error["line"].as_u64(), error["code"].to_string()));
        found.collect::<Vec<_>>()
    };
    let error = |line, code: &str| (Some(line), format!("\"{code}\""));
    assert_eq!(
        found("summary").await,
        [
            error(2, "invalid_task"),
            error(3, "missing_required_parameter")
        ]
    );
    assert_eq!(
        found("nonsense").await,
        [
            error(1, "invalid_task"),
            error(2, "invalid_task"),
            error(3, "missing_required_parameter"),
        ]
    );
    assert_eq!(world.simulators[0].stats().total.calls, 0);
}

async fn lines_of_a_task_count_for_the_limits_of_its_models() {
    let world = World::new([0, 0].map(granting), "concurrency = 3\n").await;
    let of_task: String = (0..20)
        .map(|number| line(&number.to_string(), Some("summary"), json!({})))
        .collect();
    let of_model: String = (0..20)
        .map(|number| line(&format!("m{number}"), Some("small"), json!({})))
        .collect();
    let batch = world.server.create_batch(of_task + &of_model, CHAT).await;
    eventually("the other model has all that may go there", async || {
        let in_flight = world.simulators[1].stats().total.in_flight;
        if in_flight >= 17 {
            Ok(())
        } else {
            Err(in_flight)
        }
    })
    .await;
    assert_eq!(world.simulators[0].stats().total.most_in_flight, 3);
    for simulator in &world.simulators {
        simulator.grant(40);
    }
    let batch = world.server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 40, "{batch}");
    assert_eq!(world.simulators[0].stats().total.most_in_flight, 3);
}

on_every_engine!(
    a_task_stands_for_its_models_and_fills_in_what_lines_leave_out,
    a_batch_names_the_task_of_all_its_lines,
    what_a_task_does_not_have_is_the_lines_error,
    lines_of_a_task_count_for_the_limits_of_its_models,
);
