//! The PostgreSQL engine on a real server, at `POSTGRES_URL`.

#![cfg(feature = "postgres-tests")]

mod contract;
mod namespace;
