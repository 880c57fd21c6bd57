//! A server in this process, with a thread of its own: it goes on while a test waits, and can be
//! gone from one moment to the next.

use std::sync::Arc;

use nightshift::internals::app::App;
use nightshift::internals::config::Config;
use nightshift::internals::domain::clock::Clock;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{eventually, secrets};

/// A server that runs. Dropped, it is gone as after a power cut.
pub struct InProcess {
    pub base: String,
    stop: CancellationToken,
    power_cut: CancellationToken,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl InProcess {
    pub async fn start(config: &Config, clock: Clock) -> InProcess {
        secrets::listen();
        let (stop, power_cut) = (CancellationToken::new(), CancellationToken::new());
        let (tell, told) = oneshot::channel();
        let (config, stopped, cut) = (config.clone(), stop.clone(), power_cut.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("builds");
            let ended = runtime.block_on(async {
                tokio::select! {
                    ended = serve(&config, clock, tell, stopped) => ended,
                    () = cut.cancelled() => Ok(()),
                }
            });
            runtime.shutdown_background();
            ended
        });
        let Ok(base) = told.await else {
            panic!("it does not start: {:?}", thread.join());
        };
        InProcess {
            base,
            stop,
            power_cut,
            thread: Some(thread),
        }
    }

    /// Stops it politely.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let thread = self.thread.take().expect("runs");
        let joined = tokio::task::spawn_blocking(|| thread.join()).await;
        let ended = joined.expect("is waited for").expect("does not panic");
        ended.expect("stops well");
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.power_cut.cancel();
        if let Some(thread) = self.thread.take() {
            // How it ended is not asked.
            let _ = thread.join();
        }
    }
}

async fn serve(
    config: &Config,
    clock: Clock,
    tell: oneshot::Sender<String>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let app = eventually("the lock on the file is free", async || {
        match App::start(config, clock.clone()).await {
            // A process that another test just starts may still hold a copy of the lock.
            Err(error) if error.to_string().contains("another nightshift server") => Err(error),
            started => Ok(started),
        }
    })
    .await?;
    let _ = tell.send(format!("http://{}", app.address()));
    app.serve_until(stop, Arc::default()).await
}
