//! The tables and functions in the database: their version, and the migrations from older versions.

use std::sync::Arc;

use deadpool_postgres::{ClientWrapper, Object};
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use super::error::{Errors, Failed, Stage};
use super::names::Names;
use crate::backend::StorageError;

/// Each script migrates the database from the version before it. The first script creates everything. A script never changes after a
/// release.
const MIGRATIONS: [&str; 1] = [include_str!("schema/1.sql")];

/// Creates the tables, or migrates them to the current version, in one transaction. Does nothing if they have it.
pub(super) async fn migrate(
    connection: &mut Object,
    names: &Names,
    errors: &Errors,
) -> Result<(), StorageError> {
    let failed = |error| errors.of(Failed::Statement(Arc::new(error), Stage::NothingWritten));
    let transaction = connection.transaction().await.map_err(failed)?;
    let client = &*transaction;
    // Another process may migrate the same tables. The lock ends with the transaction.
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    client.query_typed(lock, &[(&names.in_sql("{q}"), Type::TEXT)]).await.map_err(failed)?;
    let done = version(client, names).await.map_err(failed)?;
    let Some(missing) = usize::try_from(done).ok().and_then(|done| MIGRATIONS.get(done..)) else {
        return Err(newer(errors, done));
    };
    let mut script = String::new();
    if done == 0 && !has_schema(client, names).await.map_err(failed)? {
        script += &format!("CREATE SCHEMA \"{}\";\n", names.schema());
    }
    for (migration, version) in missing.iter().zip(done + 1..) {
        script += &names.in_sql(migration);
        script +=
            &names.in_sql(&format!("DELETE FROM {{q}}schema; INSERT INTO {{q}}schema VALUES ({version});\n"));
    }
    client.batch_execute(&script).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)
}

/// Checks that the tables exist and have the current version.
pub(super) async fn check(
    client: &ClientWrapper,
    names: &Names,
    errors: &Errors,
) -> Result<(), StorageError> {
    let found = version(&**client, names).await;
    let found =
        found.map_err(|error| errors.of(Failed::Statement(Arc::new(error), Stage::NothingWritten)))?;
    match usize::try_from(found) {
        Ok(found) if found == MIGRATIONS.len() => Ok(()),
        Ok(found) if found < MIGRATIONS.len() => Err(errors.backend(
            format!(
                "the schema {:?} of the database has no tables of this crate, or those of an older version; create or migrate them with \
                 `mcp-tasks init`, or with `PostgresBuilder::init`",
                names.schema()
            ),
            false,
            None,
        )),
        _ => Err(newer(errors, found)),
    }
}

fn newer(errors: &Errors, found: i32) -> StorageError {
    let known = MIGRATIONS.len();
    let reason = format!(
        "the tables have schema version {found}, and this version of the crate knows versions up to {known}; upgrade the crate"
    );
    errors.backend(reason, false, None)
}

/// Returns the version of the tables; 0 if there are none.
async fn version(client: &impl GenericClient, names: &Names) -> Result<i32, tokio_postgres::Error> {
    let table = names.in_sql("{q}schema");
    let rows = client.query_typed("SELECT to_regclass($1) IS NOT NULL", &[(&table, Type::TEXT)]).await?;
    if !rows.first().map_or(Ok(false), |row| row.try_get(0))? {
        return Ok(0);
    }
    let rows = client.query_typed(&names.in_sql("SELECT version FROM {q}schema"), &[]).await?;
    rows.first().map_or(Ok(0), |row| row.try_get(0))
}

async fn has_schema(client: &impl GenericClient, names: &Names) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
    let rows = client.query_typed(sql, &[(&names.schema(), Type::TEXT)]).await?;
    rows.first().map_or(Ok(false), |row| row.try_get(0))
}
