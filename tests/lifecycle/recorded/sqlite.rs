//! A dump of a SQLite file: the statements that create it again, in the form of the command `.dump` of `sqlite3`.

use chrono::{DateTime, SecondsFormat, Utc};
use rusqlite::{Connection, params};

use super::moved;

const RECORDED_AT: &str = "-- recorded at ";

fn strings(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

pub fn dump(connection: &Connection, at: DateTime<Utc>) -> String {
    let mut dump = format!("{RECORDED_AT}{}\n", at.to_rfc3339_opts(SecondsFormat::Millis, true));
    for pragma in ["application_id", "user_version"] {
        let value: i64 = connection.pragma_query_value(None, pragma, |row| row.get(0)).unwrap();
        dump += &format!("PRAGMA {pragma} = {value};\n");
    }
    let schema = |condition: &str| {
        let sql = format!(
            "SELECT sql || ';' FROM sqlite_schema WHERE sql IS NOT NULL AND {condition} ORDER BY rowid"
        );
        strings(connection, &sql).join("\n") + "\n"
    };
    dump += &schema("type = 'table'");
    for table in strings(connection, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid") {
        let columns =
            strings(connection, &format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid"));
        let quoted: Vec<_> = columns.iter().map(|column| quoted(&table, column)).collect();
        let rows = strings(connection, &format!("SELECT {} FROM {table}", quoted.join(" || ', ' || ")));
        let names = columns.join(", ");
        rows.iter().for_each(|row| dump += &format!("INSERT INTO {table} ({names}) VALUES ({row});\n"));
    }
    // Triggers must not count the rows above.
    dump + &schema("type <> 'table'")
}

/// Returns the expression for the literal of a column. The bytes of records and parts are text, and easier to read as such.
fn quoted(table: &str, column: &str) -> String {
    match (table, column) {
        ("records" | "parts", "data") => format!("'CAST(' || quote(CAST({column} AS TEXT)) || ' AS BLOB)'"),
        // `quote` ends at a NUL, which is part of the names of some queues and owners.
        _ => format!(
            "CASE WHEN typeof({column}) = 'text' AND instr(CAST({column} AS BLOB), X'00')
             THEN 'CAST(X''' || hex({column}) || ''' AS TEXT)' ELSE quote({column}) END"
        ),
    }
}

/// Creates the file of a dump, as if the dump had been recorded just now.
pub fn load(connection: &Connection, dump: &str) {
    let recorded_at = dump.lines().next().unwrap().strip_prefix(RECORDED_AT).unwrap();
    let by = Utc::now() - recorded_at.parse::<DateTime<Utc>>().unwrap();
    connection.execute_batch(dump).unwrap();
    let mut statement = connection.prepare("SELECT id, CAST(data AS TEXT) FROM records").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))).unwrap();
    for (id, data) in rows.map(Result::unwrap).collect::<Vec<_>>() {
        let data = moved(&data, by).into_bytes();
        connection.execute("UPDATE records SET data = ?2 WHERE id = ?1", params![id, data]).unwrap();
    }
    let (ms, us) = (by.num_milliseconds(), by.num_microseconds().unwrap());
    let update = "UPDATE records SET created_at = created_at + ?2, expires_at = expires_at + ?1";
    connection.execute(update, [ms, us]).unwrap();
    connection.execute("UPDATE owners SET newest = newest + ?1", [us]).unwrap();
    connection.execute("UPDATE timers SET due_at = due_at + ?1", [ms]).unwrap();
}
