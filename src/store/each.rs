//! Acting on each of several rows.

use super::{Error, Result};

/// Acts on each of several rows. A row for which the act fails keeps no other row from its turn,
/// and waits for the next round. Returns for how many rows the act succeeded.
///
/// # Errors
/// When the database is away, or the act succeeded for no row.
pub(super) async fn each<'a, T, F>(
    what: &'static str,
    rows: &'a [T],
    id: impl Fn(&'a T) -> &'a str,
    act: impl Fn(&'a T) -> F,
) -> Result<usize>
where
    F: Future<Output = Result<()>>,
{
    let (mut done, mut failed): (_, Option<Error>) = (0, None);
    for row in rows {
        match act(row).await {
            Ok(()) => done += 1,
            Err(error) if error.is_outage() && !error.is_timeout() => return Err(error),
            Err(error) => {
                tracing::error!(what, id = id(row), %error, "it fails for one; the others go on");
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if done == 0 => Err(error),
        _ => Ok(done),
    }
}
