//! The names of the tables and functions, and the statements that use them.

use tokio_postgres::types::Type;

use super::settings::invalid_setting;
use crate::backend::StorageError;

/// PostgreSQL cuts names off after 63 bytes (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html>). The longest name is
/// that of a channel: the schema, a dot, the prefix, and `changes`.
const MAX_SCHEMA_BYTES: usize = 30;
const MAX_PREFIX_BYTES: usize = 20;

/// The schema and the prefix of everything that this crate creates in a database.
#[derive(Clone, Debug)]
pub(super) struct Names {
    schema: String,
    prefix: String,
}

impl Names {
    pub(super) fn new(schema: &str, prefix: &str) -> Result<Self, StorageError> {
        check("schema", schema, 1..=MAX_SCHEMA_BYTES)?;
        check("table_prefix", prefix, 0..=MAX_PREFIX_BYTES)?;
        Ok(Self { schema: schema.to_owned(), prefix: prefix.to_owned() })
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// Replaces `{q}` by the schema and the prefix, `{p}` by the prefix, and `{c}` by both as a channel begins with them.
    pub(super) fn in_sql(&self, sql: &str) -> String {
        let Self { schema, prefix } = self;
        let sql = sql.replace("{q}", &format!("\"{schema}\".{prefix}"));
        sql.replace("{p}", prefix).replace("{c}", &format!("{schema}.{prefix}"))
    }
}

/// Names need no quotes and no escapes, and cannot hold SQL.
fn check(setting: &str, name: &str, length: std::ops::RangeInclusive<usize>) -> Result<(), StorageError> {
    let is_legal =
        |(at, byte): (usize, u8)| matches!(byte, b'a'..=b'z' | b'_') || (at > 0 && byte.is_ascii_digit());
    if length.contains(&name.len()) && name.bytes().enumerate().all(is_legal) {
        return Ok(());
    }
    let (least, most) = (length.start(), length.end());
    Err(invalid_setting(format!(
        "{setting} is {name:?}; choose {least} to {most} characters of a-z, 0-9 and '_', not beginning with a digit"
    )))
}

// The types of parameters.
const TEXT: Type = Type::TEXT;
const TEXTS: Type = Type::TEXT_ARRAY;
const NUMBER: Type = Type::INT8;
const NUMBERS: Type = Type::INT8_ARRAY;
const COUNT: Type = Type::INT4;
const DATAS: Type = Type::BYTEA_ARRAY;
const FLAGS: Type = Type::BOOL_ARRAY;

/// A statement with the types of its parameters. Without the types, the server must be asked for them.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) types: Vec<Type>,
}

/// Every statement of the engine.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) get: Statement,
    pub(super) part: Statement,
    pub(super) put: Statement,
    pub(super) remove: Statement,
    pub(super) purge: Statement,
    pub(super) list: Statement,
    pub(super) clock: Statement,
    pub(super) owners: Statement,
    pub(super) schedule: Statement,
    pub(super) take_due: Statement,
    pub(super) resolve: Statement,
    pub(super) timers: Statement,
    pub(super) notify: Statement,
}

const GET: &str = "
    SELECT version, created_at, expires_at, parts, data, {q}clock() AS now_us FROM {q}records WHERE owner = $1 AND task = $2";

const PART: &str = "
    SELECT r.version, r.created_at, r.expires_at, r.parts, p.data, {q}clock() AS now_us
    FROM {q}records AS r LEFT JOIN {q}parts AS p ON p.owner = r.owner AND p.task = r.task AND p.name = $3
    WHERE r.owner = $1 AND r.task = $2";

const PUT: &str = "SELECT * FROM {q}put($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";

/// The last record of a page is the last that fits into its bytes. `length` reads no data.
const LIST: &str = "
    SELECT task, version, created_at, expires_at, parts, data, found, {q}clock() AS now_us FROM (
        SELECT *, row_number() OVER newest AS place, sum(length(data)) OVER newest AS bytes, count(*) OVER () AS found FROM (
            SELECT * FROM {q}records
            WHERE owner = $1 AND created_at < $2 AND (expires_at IS NULL OR expires_at > {q}clock() / 1000)
            ORDER BY created_at DESC LIMIT $3 + 1
        ) AS live WINDOW newest AS (ORDER BY created_at DESC)
    ) AS placed
    WHERE place <= $3 AND (place = 1 OR bytes <= $4) ORDER BY created_at DESC";

const OWNERS: &str = "
    SELECT name, EXISTS (
        SELECT FROM {q}records AS r WHERE r.owner = name AND (r.expires_at IS NULL OR r.expires_at > {q}clock() / 1000))
    FROM {q}owners WHERE name > $1 ORDER BY name LIMIT $2";

const TIMERS: &str = "
    SELECT owner, task, due_at, (SELECT count(*) FROM {q}timers WHERE queue = $1)
    FROM {q}timers WHERE queue = $1 AND (due_at, owner, task) > ($2, $3, $4)
    ORDER BY due_at, owner, task LIMIT $5";

impl Statements {
    pub(super) fn new(names: &Names) -> Self {
        let statement =
            |sql: &str, types: &[Type]| Statement { sql: names.in_sql(sql), types: types.to_vec() };
        Self {
            get: statement(GET, &[TEXT, TEXT]),
            part: statement(PART, &[TEXT, TEXT, TEXT]),
            put: statement(
                PUT,
                &[
                    TEXTS, TEXTS, NUMBERS, DATAS, NUMBERS, NUMBERS, FLAGS, TEXTS, NUMBERS, TEXTS, DATAS,
                    NUMBER, COUNT,
                ],
            ),
            remove: statement("SELECT * FROM {q}remove($1, $2)", &[TEXT, TEXT]),
            purge: statement("SELECT {q}purge($1) AS purge", &[COUNT]),
            list: statement(LIST, &[TEXT, NUMBER, NUMBER, NUMBER]),
            clock: statement("SELECT {q}clock() AS now_us", &[]),
            owners: statement(OWNERS, &[TEXT, NUMBER]),
            schedule: statement(
                "SELECT {q}schedule($1, $2, $3, $4) AS now_us",
                &[TEXTS, TEXTS, TEXTS, NUMBERS],
            ),
            take_due: statement("SELECT * FROM {q}take_due($1, $2, $3)", &[TEXTS, COUNT, NUMBER]),
            resolve: statement(
                "SELECT * FROM {q}resolve($1, $2, $3, $4, $5)",
                &[TEXTS, TEXTS, TEXTS, NUMBERS, NUMBERS],
            ),
            timers: statement(TIMERS, &[TEXT, NUMBER, TEXT, TEXT, NUMBER]),
            notify: statement("SELECT pg_notify($1, $2)", &[TEXT, TEXT]),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn sql_names_the_schema_and_the_prefix() {
        let names = Names::new("tasks", "mcp_").unwrap();
        let sql = names.in_sql("SELECT FROM {q}records; {p}by; '{c}timers'");
        assert_eq!(sql, "SELECT FROM \"tasks\".mcp_records; mcp_by; 'tasks.mcp_timers'");
    }

    #[rstest]
    #[case::empty("", "mcp_")]
    #[case::upper_case("Tasks", "mcp_")]
    #[case::quote("public", "x\"; DROP")]
    #[case::digit("public", "1_")]
    #[case::too_long("public", &"x".repeat(21))]
    fn a_name_that_needs_quotes_is_refused(#[case] schema: &str, #[case] prefix: &str) {
        let refused = Names::new(schema, prefix).unwrap_err();
        assert!(refused.to_string().contains("choose"), "{refused}");
    }
}
