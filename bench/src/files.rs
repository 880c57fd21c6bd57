//! A server of static files, in a process of its own: what a download is compared with.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower_http::services::ServeDir;

#[derive(Clone, Debug, clap::Args)]
pub struct FilesArgs {
    #[arg(long)]
    pub directory: PathBuf,
}

/// Serves a directory until killed.
pub async fn run(args: FilesArgs) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
    let files = ServeDir::new(args.directory).with_buf_chunk_size(256 << 10);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = TowerToHyperService::new(files.clone());
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection);
    }
}
