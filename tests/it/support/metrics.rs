//! What a server tells operators by `/metrics`.

use reqwest::Client;

use super::binary::{command, ended};
use super::secrets::search;
use super::{client_with, eventually};

/// Makes an operator's key.
pub async fn operator(database: &str) -> String {
    let create = ["keys", "create", "--name", "ops", "--admin", "--database"];
    let made = ended(command(&[&create[..], &[database]].concat())).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    made.out.trim().to_owned()
}

/// What `/metrics` tells.
pub struct Metrics(pub String);

impl Metrics {
    pub async fn of(base: &str, key: Option<&str>) -> Self {
        Self::read(&client_with(key), base).await
    }

    async fn read(client: &Client, base: &str) -> Self {
        let url = format!("{base}/metrics");
        let response = client.get(url).send().await.expect("answers");
        assert_eq!(response.status(), 200);
        let of_type = response.headers()["content-type"].to_str().expect("text");
        assert!(of_type.starts_with("application/openmetrics-text"));
        let text = response.text().await.expect("is text");
        assert!(text.ends_with("# EOF\n"), "it is whole");
        search("/metrics", &text);
        Metrics(text)
    }

    /// The sum of all samples of a name that have these labels, such as `outcome="failed"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let samples = self.0.lines().filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            let (found, rest) = sample.split_once('{').unwrap_or((sample, ""));
            let fits = found == name && labels.iter().all(|label| rest.contains(label));
            fits.then(|| value.parse::<f64>().expect("is a number"))
        });
        samples.sum()
    }

    /// Waits until something holds of them.
    pub async fn until(base: &str, key: &str, holds: impl Fn(&Metrics) -> bool) -> Metrics {
        let client = client_with(Some(key));
        eventually("the metrics come to that", async || {
            let metrics = Self::read(&client, base).await;
            if holds(&metrics) {
                Ok(metrics)
            } else {
                Err(metrics.0)
            }
        })
        .await
    }
}
