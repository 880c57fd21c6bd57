//! Tasks that one process does for all processes that share a store. For a moment two processes may
//! do the same task, which costs some statements and nothing else.

use crate::store::engine::{Sql, on_pool, sql};
use crate::store::{Engine, Result, Store};

impl Store {
    /// Claims a task, unless another process has it. A task belongs to its holder for as long as
    /// the holder's lease runs, so that holding it is no write. True if the task belongs to this
    /// process. On SQLite there is only this process.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hold_task(&self, name: &str, holder: &str) -> Result<bool> {
        if self.engine() == Engine::Sqlite {
            return Ok(true);
        }
        let look = sql!(
            "-- look_at_task
             SELECT holder FROM tasks WHERE name = $1 AND {is_held}",
            is_held = self.is_held()
        );
        let found: Option<(String,)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(look).bind(name).fetch_optional(c).await?
        });
        if let Some((found,)) = found {
            return Ok(found == holder);
        }
        // Earlier versions go by `held_until`: they may have the task at once.
        let hold = sql!(
            "-- hold_task
             INSERT INTO tasks (name, holder, held_until) VALUES ($1, $2, {now})
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder,
                held_until = excluded.held_until
             WHERE NOT {is_held}",
            now = self.engine().now_ms(),
            is_held = self.is_held()
        );
        let held = on_pool!(self.writer(), |c| {
            sqlx::query(hold)
                .bind(name)
                .bind(holder)
                .execute(c)
                .await?
                .rows_affected()
        });
        Ok(held == 1)
    }

    /// Gives a task up, if this process has it: a process that stops keeps its lease until its
    /// last call has ended.
    ///
    /// # Errors
    /// When the database fails. Then the task is free once the lease of this process has ended.
    pub async fn give_up_task(&self, name: &str, holder: &str) -> Result<()> {
        if self.engine() == Engine::Sqlite {
            return Ok(());
        }
        let give_up = "-- give_up_task
             DELETE FROM tasks WHERE name = $1 AND holder = $2";
        on_pool!(self.writer(), |c| {
            sqlx::query(give_up)
                .bind(name)
                .bind(holder)
                .execute(c)
                .await?
                .rows_affected()
        });
        Ok(())
    }

    /// Whether the lease of a task's holder runs.
    fn is_held(&self) -> Sql {
        sql!(
            "EXISTS (SELECT 1 FROM replicas
                WHERE replicas.token = tasks.holder AND replicas.lease_until >= {now})",
            now = self.engine().now_ms()
        )
    }
}
