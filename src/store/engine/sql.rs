//! The text of statements, and the values that they bind.
//!
//! sqlx takes a text that a program has put together only from someone who asserts that nothing
//! of a user's is in it. [`Sql`] is the one place that asserts this, and [`sql!`] is why it is so:
//! the macro puts in nothing but text of this program's source, numbers, and other [`Sql`].

use std::borrow::Cow;
use std::fmt;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::Engine;

/// The text of a statement, or of a part of one.
#[derive(Clone, Debug)]
pub(in crate::store) struct Sql(String);

/// What [`sql!`] may put into a statement.
pub(in crate::store) trait Part: fmt::Display {}

impl Part for &'static str {}
impl Part for i64 {}
impl Part for u32 {}
impl Part for usize {}
impl Part for Sql {}
impl Part for &Sql {}

/// Makes an [`Sql`] as `format!` makes a text. Each name in braces is given behind the text, as
/// `name` or as `name = value`, so that the compiler sees that the value is a [`Part`].
macro_rules! sql {
    ($text:literal $(, $name:ident $(= $value:expr)?)* $(,)?) => {
        // `concat!` keeps the text from naming a variable by itself.
        $crate::store::engine::Sql::of(format_args!(
            concat!($text),
            $($name = $crate::store::engine::sql_part!($name $(, $value)?)),*
        ))
    };
}

macro_rules! sql_part {
    ($name:ident) => {
        $crate::store::engine::part(&$name)
    };
    ($name:ident, $value:expr) => {
        $crate::store::engine::part(&$value)
    };
}

/// Binds a value for each of several in their order.
macro_rules! bind_each {
    ($query:expr, $values:expr) => {{
        let mut query = $query;
        for value in $values {
            query = query.bind(value);
        }
        query
    }};
}

/// Binds all values of [`Rows`].
macro_rules! bind_rows {
    ($query:expr, $rows:expr) => {{
        let mut query = $query;
        for value in $rows.into_values() {
            query = match value {
                $crate::store::engine::Value::Text(text) => query.bind(text),
                $crate::store::engine::Value::Number(number) => query.bind(number),
                $crate::store::engine::Value::Bytes(bytes) => query.bind(bytes),
            };
        }
        query
    }};
}

pub(in crate::store) use {bind_each, bind_rows, sql, sql_part};

/// For [`sql!`]: shows that a value is a [`Part`].
pub(in crate::store) fn part<P: Part>(value: &P) -> &P {
    value
}

impl Sql {
    /// For [`sql!`], which sees to what the arguments are.
    pub(in crate::store) fn of(text: fmt::Arguments<'_>) -> Self {
        Sql(text.to_string())
    }

    /// Joins each row before this text with rows of `table`, by the name `alias`: with the first
    /// that `chosen` has, from its `WHERE` to its `LIMIT`. SQLite has no lateral joins.
    pub(in crate::store) fn first_of_each(
        engine: Engine,
        table: &'static str,
        alias: &'static str,
        chosen: &Sql,
    ) -> Self {
        match engine {
            Engine::Sqlite => sql!(
                "JOIN {table} {alias} ON {alias}.rowid IN
                    (SELECT {alias}.rowid FROM {table} {alias} {chosen})",
                table,
                alias,
                chosen
            ),
            Engine::Postgres => sql!(
                "CROSS JOIN LATERAL (SELECT * FROM {table} {alias} {chosen}) {alias}",
                table,
                alias,
                chosen
            ),
        }
    }

    /// The texts with commas between them.
    pub(in crate::store) fn joined(parts: impl IntoIterator<Item = Sql>) -> Self {
        let parts: Vec<String> = parts.into_iter().map(|part| part.0).collect();
        Sql(parts.join(", "))
    }
}

impl fmt::Display for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SqlSafeStr for Sql {
    fn into_sql_str(self) -> SqlStr {
        AssertSqlSafe(self.0).into_sql_str()
    }
}

/// A value that a statement binds.
#[derive(Clone, Debug)]
pub(in crate::store) enum Value<'a> {
    Text(Option<Cow<'a, str>>),
    Number(Option<i64>),
    Bytes(Option<&'a [u8]>),
}

impl Value<'_> {
    /// The type that the value is cast to in a list that stands by itself: there Postgres has
    /// nothing else to tell the type from.
    fn sql_type(&self, engine: Engine) -> &'static str {
        match self {
            Value::Text(_) => "TEXT",
            Value::Number(_) => "BIGINT",
            Value::Bytes(_) => engine.bytes_type(),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(Some(Cow::Borrowed(text)))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Value::Text(Some(Cow::Borrowed(text)))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::Text(Some(Cow::Owned(text)))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Value::Text(text.map(Cow::Borrowed))
    }
}

impl<'a> From<&'a Option<String>> for Value<'a> {
    fn from(text: &'a Option<String>) -> Self {
        text.as_deref().into()
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Value::Number(Some(number))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(number: Option<i64>) -> Self {
        Value::Number(number)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Value::Bytes(Some(bytes))
    }
}

impl<'a> From<Option<&'a [u8]>> for Value<'a> {
    fn from(bytes: Option<&'a [u8]>) -> Self {
        Value::Bytes(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Value<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Value::Bytes(Some(bytes))
    }
}

/// Rows that a statement binds, each value with the name of its column: the list of columns, the
/// list of parameters and the values that are bound cannot fall out of step.
#[derive(Clone, Debug)]
pub(in crate::store) struct Rows<'a> {
    columns: Vec<&'static str>,
    values: Vec<Value<'a>>,
}

impl<'a> Rows<'a> {
    /// At least one row; no statement takes an empty list.
    pub(in crate::store) fn of<R>(rows: impl IntoIterator<Item = R>) -> Self
    where
        R: IntoIterator<Item = (&'static str, Value<'a>)>,
    {
        let (mut columns, mut values) = (Vec::new(), Vec::new());
        for (number, row) in rows.into_iter().enumerate() {
            for (column, value) in row {
                if number == 0 {
                    columns.push(column);
                }
                values.push(value);
            }
        }
        Rows { columns, values }
    }

    /// The names of the columns: `a, b`.
    pub(in crate::store) fn columns(&self) -> Sql {
        Sql(self.columns.join(", "))
    }

    /// The parameters, from number `first` on: `($1, $2), ($3, $4)`.
    pub(in crate::store) fn parameters(&self, first: usize) -> Sql {
        self.list(first, |text, number, _| {
            text.push('$');
            text.push_str(&number.to_string());
        })
    }

    /// A table of the rows for a `WITH`: `name(a, b) AS (VALUES …)`.
    pub(in crate::store) fn table(&self, name: &str, first: usize, engine: Engine) -> Sql {
        let columns = self.columns();
        let rows = self.typed(first, engine);
        Sql(format!("{name}({columns}) AS (VALUES {rows})"))
    }

    /// The parameters, each cast to its type, for a list that stands by itself.
    pub(in crate::store) fn typed(&self, first: usize, engine: Engine) -> Sql {
        self.list(first, |text, number, value| {
            let of_type = value.sql_type(engine);
            text.push_str(&format!("CAST(${number} AS {of_type})"));
        })
    }

    /// What an UPDATE sets, from one row: `a = $1, b = $2`.
    pub(in crate::store) fn assignments(&self, first: usize) -> Sql {
        let numbered = self.columns.iter().zip(first..);
        let set: Vec<_> = numbered
            .map(|(column, number)| format!("{column} = ${number}"))
            .collect();
        Sql(set.join(", "))
    }

    pub(in crate::store) fn into_values(self) -> impl Iterator<Item = Value<'a>> {
        self.values.into_iter()
    }

    fn list(&self, first: usize, write: impl Fn(&mut String, usize, &Value<'_>)) -> Sql {
        let mut text = String::with_capacity(self.values.len() * 20);
        for (place, (value, number)) in self.values.iter().zip(first..).enumerate() {
            text.push_str(match place % self.columns.len() {
                0 if place == 0 => "(",
                0 => "), (",
                _ => ", ",
            });
            write(&mut text, number, value);
        }
        text.push(')');
        Sql(text)
    }
}

/// `($1, $2, $3)`, for `IN`: so many parameters from number `first` on.
pub(in crate::store) fn list(first: usize, count: usize) -> Sql {
    let numbers: Vec<String> = (first..first + count).map(|n| format!("${n}")).collect();
    Sql(format!("({})", numbers.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_count_and_type_what_they_bind() {
        let rows = Rows::of([("a", 1), ("b", 2)].map(|(text, number)| {
            [
                ("id", Value::from(text)),
                ("total", number.into()),
                ("done", Value::Bytes(None)),
            ]
        }));
        assert_eq!(rows.columns().to_string(), "id, total, done");
        assert_eq!(rows.parameters(2).to_string(), "($2, $3, $4), ($5, $6, $7)");
        assert_eq!(
            rows.table("v", 1, Engine::Postgres).to_string(),
            "v(id, total, done) AS (VALUES (CAST($1 AS TEXT), CAST($2 AS BIGINT), \
             CAST($3 AS BYTEA)), (CAST($4 AS TEXT), CAST($5 AS BIGINT), CAST($6 AS BYTEA)))"
        );
        assert_eq!(rows.into_values().count(), 6);
        let row = Rows::of([[("id", Value::from("a")), ("total", 1.into())]]);
        assert_eq!(row.assignments(3).to_string(), "id = $3, total = $4");
        assert_eq!(list(2, 3).to_string(), "($2, $3, $4)");
    }

    #[test]
    fn a_text_is_put_together_from_parts() {
        let now = sql!("unixepoch()");
        let sql = sql!(
            "SELECT {column} + {limit}, {now}",
            column = "a",
            limit = 3_i64,
            now
        );
        assert_eq!(sql.to_string(), "SELECT a + 3, unixepoch()");
    }
}
