//! Tasks that one process does for all processes that share a store. For a moment two processes may
//! do the same task, which costs some statements and nothing else.

use crate::store::engine::{on_pool, sql};
use crate::store::{Engine, Result, Store};

impl Store {
    /// Claims a task for so many milliseconds from now on, unless another process has it. `is_held`
    /// says that this process had the task before. True if the task belongs to this process. On
    /// SQLite there is only this process.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hold_task(
        &self,
        name: &str,
        holder: &str,
        ttl_ms: i64,
        is_held: bool,
    ) -> Result<bool> {
        if self.engine() == Engine::Sqlite {
            return Ok(true);
        }
        let now = self.engine().now_ms();
        if !is_held {
            // One read shows whether another process has the task. A claim that ends later than
            // any new claim was made before the database's clock was set back: it does not count.
            let look = sql!(
                "-- look_at_task
                 SELECT CAST(1 AS BIGINT) FROM tasks WHERE name = $1 AND holder <> $2
                    AND held_until BETWEEN {now} AND {now} + $3",
                now
            );
            let others: Option<(i64,)> = on_pool!(self.reader(), |c| {
                sqlx::query_as(look)
                    .bind(name)
                    .bind(holder)
                    .bind(ttl_ms)
                    .fetch_optional(c)
                    .await?
            });
            if others.is_some() {
                return Ok(false);
            }
        }
        let hold = sql!(
            "-- hold_task
             INSERT INTO tasks (name, holder, held_until) VALUES ($1, $2, {now} + $3)
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder,
                held_until = excluded.held_until
             WHERE tasks.holder = excluded.holder
                OR tasks.held_until NOT BETWEEN {now} AND {now} + $3",
            now
        );
        let held = on_pool!(self.writer(), |c| {
            sqlx::query(hold)
                .bind(name)
                .bind(holder)
                .bind(ttl_ms)
                .execute(c)
                .await?
                .rows_affected()
        });
        Ok(held == 1)
    }
}
