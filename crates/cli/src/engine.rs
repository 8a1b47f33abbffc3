//! Opens the store that a URL names. A further engine is a further entry of [`SCHEMES`] and a further [`Kind`].

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mcp_task_store::{
    Agenda, Diagnose, Encrypted, Keyring, KeyringError, RedisBackend, RedisBuilder, SqliteBackend,
    StoreConfig, TaskStore,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::args::ConnectArgs;
use crate::failure::{Failure, with_causes};

/// A store on any engine.
pub type Store = TaskStore<Arc<dyn Agenda>>;

const URL_VARIABLE: &str = "MCP_TASKS_URL";
const PASSWORD_VARIABLE: &str = "MCP_TASKS_PASSWORD";
const KEYS_VARIABLE: &str = "MCP_TASKS_KEYS";

/// The form of a URL for each engine.
const SCHEMES: [&str; 7] = [
    "sqlite:PATH",
    "redis://[USER@]HOST[:PORT][/DATABASE]",
    "rediss://… (the same, over TLS)",
    "redis+cluster://[USER@]HOST[:PORT][,HOST[:PORT]…]",
    "rediss+cluster://… (the same, over TLS)",
    "redis+sentinel://[USER@]HOST[:PORT][,HOST[:PORT]…]/MASTER[/DATABASE]",
    "rediss+sentinel://… (the same, over TLS)",
];

/// What a command needs of a store when it opens it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A SQLite file must exist and have the tables of this version.
    Existing,
    /// Creates or migrates a SQLite file.
    MakeReady,
}

/// Opens the store as an observer: nothing is written until a command asks for it. With keys, the store decrypts and encrypts.
pub async fn open(args: &ConnectArgs) -> Result<Store, Failure> {
    // A mistake in the keys is reported before the store is opened.
    let keyring = keyring(args)?;
    Ok(observer(open_engine(args, Opening::Existing).await?, keyring))
}

/// Returns a store on this engine that detects no lost workers, and whose reads write nothing.
pub fn observer(engine: Arc<dyn Agenda>, keyring: Option<Keyring>) -> Store {
    let engine = match keyring {
        Some(keyring) => Arc::new(Encrypted::new(engine, keyring)),
        None => engine,
    };
    TaskStore::with_config(engine, StoreConfig::new().observer(true))
}

/// Opens the engine of the store, which reads and writes what is stored, encrypted or not.
pub async fn open_engine(args: &ConnectArgs, opening: Opening) -> Result<Arc<dyn Diagnose>, Failure> {
    let (url, is_argument) = url(args)?;
    let (scheme, rest) = url.split_once(':').unwrap_or_default();
    Ok(match kind_of(scheme).ok_or_else(unknown)? {
        Kind::Sqlite => {
            reject("--prefix", args.prefix.is_some(), "sqlite")?;
            reject("--password-file", args.password_file.is_some(), "sqlite")?;
            Arc::new(open_sqlite(rest, opening).await?)
        }
        Kind::Redis => {
            let servers = rest.strip_prefix("//").ok_or_else(unknown)?;
            let location = RedisLocation::read(scheme, servers, is_argument, args)?;
            Arc::new(location.connect(args).await?)
        }
    })
}

/// Returns the keys of the file or of the environment, if there are any.
pub fn keyring(args: &ConnectArgs) -> Result<Option<Keyring>, Failure> {
    let of_file = args.keys.as_ref().map(Keyring::from_file);
    let is_set = std::env::var_os(KEYS_VARIABLE).is_some_and(|keys| !keys.is_empty());
    let keyring = of_file.or_else(|| is_set.then(|| Keyring::from_variable(KEYS_VARIABLE))).transpose();
    keyring.map_err(|error: KeyringError| Failure::failed(with_causes(&error)))
}

/// An engine.
#[derive(Clone, Copy)]
pub enum Kind {
    Sqlite,
    Redis,
}

impl Kind {
    /// Returns the engine that the URL names.
    pub fn of(args: &ConnectArgs) -> Result<Self, Failure> {
        let (url, _) = url(args)?;
        url.split_once(':').and_then(|(scheme, _)| kind_of(scheme)).ok_or_else(unknown)
    }

    /// Returns the name that exports state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
        }
    }
}

fn kind_of(scheme: &str) -> Option<Kind> {
    match scheme {
        "sqlite" => Some(Kind::Sqlite),
        "redis" | "rediss" | "redis+cluster" | "rediss+cluster" | "redis+sentinel" | "rediss+sentinel" => {
            Some(Kind::Redis)
        }
        _ => None,
    }
}

/// Returns the URL, and whether it is an argument of the command.
fn url(args: &ConnectArgs) -> Result<(String, bool), Failure> {
    match &args.url {
        Some(url) => Ok((url.clone(), true)),
        None => Ok((url_of_environment()?, false)),
    }
}

fn url_of_environment() -> Result<String, Failure> {
    match std::env::var(URL_VARIABLE) {
        Ok(url) if !url.is_empty() => Ok(url),
        Ok(_) | Err(std::env::VarError::NotPresent) => Err(Failure::usage(format!(
            "no store was named; pass --url or set {URL_VARIABLE} to one of: {}",
            SCHEMES.join(", ")
        ))),
        Err(std::env::VarError::NotUnicode(_)) => Err(Failure::usage(format!("{URL_VARIABLE} is not UTF-8"))),
    }
}

/// The error never repeats the URL: what it holds instead of a scheme may be a secret.
fn unknown() -> Failure {
    Failure::usage(format!("the URL of the store has none of the known forms: {}", SCHEMES.join(", ")))
}

fn reject(option: &str, is_set: bool, scheme: &str) -> Result<(), Failure> {
    match is_set {
        true => Err(Failure::usage(format!(
            "{option} has no meaning for a URL that begins with {scheme}:; remove it"
        ))),
        false => Ok(()),
    }
}

async fn open_sqlite(path: &str, opening: Opening) -> Result<SqliteBackend, Failure> {
    // `sqlite:///var/tasks.db` and `sqlite://tasks.db` are common forms of the same.
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() {
        return Err(Failure::usage("the URL names no file; write sqlite:PATH, for example sqlite:tasks.db"));
    }
    let builder = SqliteBackend::builder(path);
    Ok(match opening {
        Opening::Existing => builder.must_exist().open().await?,
        Opening::MakeReady => builder.open().await?,
    })
}

/// Servers of Redis, with the credentials for them.
struct RedisLocation<'a> {
    topology: Topology,
    /// `redis` or `rediss`.
    scheme: &'a str,
    /// `user:password@`, percent-encoded, or nothing.
    credentials: String,
    hosts: Vec<&'a str>,
    /// What follows the hosts, with the `/` or `?` in front.
    path: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    Server,
    Cluster,
    Sentinel,
}

impl<'a> RedisLocation<'a> {
    fn read(scheme: &'a str, rest: &'a str, is_argument: bool, args: &ConnectArgs) -> Result<Self, Failure> {
        let (scheme, topology) = match scheme.split_once('+') {
            Some((scheme, "cluster")) => (scheme, Topology::Cluster),
            Some((scheme, _)) => (scheme, Topology::Sentinel),
            None => (scheme, Topology::Server),
        };
        let (user, servers) =
            rest.rsplit_once('@').map_or((None, rest), |(user, servers)| (Some(user), servers));
        let (user, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            Some((user, password)) => (user, Some(password).filter(|password| !password.is_empty())),
            None => ("", None),
        };
        if is_argument && password.is_some() {
            return Err(Failure::usage(format!(
                "--url contains a password, which every user of this machine can see in the list of processes; remove it \
                 from the URL, and pass --password-file FILE or set {PASSWORD_VARIABLE}, or set {URL_VARIABLE} instead of --url"
            )));
        }
        let password = match given_password(args.password_file.as_deref())? {
            Some(given) => Some(utf8_percent_encode(&given, NON_ALPHANUMERIC).to_string()),
            None => password.map(str::to_owned),
        };
        let credentials = match (user, password) {
            ("", None) => String::new(),
            (user, None) => format!("{user}@"),
            (user, Some(password)) => format!("{user}:{password}@"),
        };
        let (hosts, path) = servers.split_at(servers.find(['/', '?', '#']).unwrap_or(servers.len()));
        let hosts = if topology == Topology::Server { vec![hosts] } else { hosts.split(',').collect() };
        Ok(Self { topology, scheme, credentials, hosts, path })
    }

    async fn connect(&self, args: &ConnectArgs) -> Result<RedisBackend, Failure> {
        let mut builder: RedisBuilder = RedisBackend::builder();
        if let Some(prefix) = &args.prefix {
            builder = builder.prefix(prefix);
        }
        if let Some(file) = &args.ca_file {
            let pem = fs::read(file).map_err(|error| unreadable("--ca-file", file, &error))?;
            builder = builder.root_certificates(pem);
        }
        let mut urls = self.urls()?;
        Ok(match self.topology {
            Topology::Server => builder.connect(&urls.concat()).await?,
            Topology::Cluster => builder.connect_cluster(urls).await?,
            Topology::Sentinel => {
                let master = urls.pop().unwrap_or_default();
                builder.connect_sentinel(urls, &master).await?
            }
        })
    }

    /// Returns the URL of each server. The last one behind sentinels is that of the master.
    fn urls(&self) -> Result<Vec<String>, Failure> {
        let Self { topology, scheme, credentials, hosts, path } = self;
        if *topology != Topology::Sentinel {
            return Ok(hosts.iter().map(|host| format!("{scheme}://{credentials}{host}{path}")).collect());
        }
        let master = path.strip_prefix('/').filter(|master| !master.is_empty()).ok_or_else(|| {
            Failure::usage("the URL names no master; its form is redis+sentinel://HOST:PORT,…/MASTER")
        })?;
        let sentinels = hosts.iter().map(|host| format!("{scheme}://{host}"));
        Ok(sentinels.chain([format!("{scheme}://{credentials}{master}")]).collect())
    }
}

/// Returns the password of the file or of the environment, if there is one.
fn given_password(file: Option<&Path>) -> Result<Option<String>, Failure> {
    if let Some(file) = file {
        let text = fs::read_to_string(file).map_err(|error| unreadable("--password-file", file, &error))?;
        let password = text.strip_suffix('\n').unwrap_or(&text);
        let password = password.strip_suffix('\r').unwrap_or(password);
        return match password.is_empty() {
            true => Err(Failure::usage(format!("--password-file {} is empty", file.display()))),
            false => Ok(Some(password.to_owned())),
        };
    }
    match std::env::var(PASSWORD_VARIABLE) {
        Ok(password) => Ok(Some(password).filter(|password| !password.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Failure::usage(format!("{PASSWORD_VARIABLE} is not UTF-8")))
        }
    }
}

fn unreadable(option: &str, file: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{option} {} cannot be read: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn args(password_file: Option<&Path>) -> ConnectArgs {
        let password_file = password_file.map(Path::to_owned);
        ConnectArgs { url: None, prefix: None, password_file, ca_file: None, keys: None }
    }

    #[rstest]
    #[case::server("redis", "h:1/2?protocol=resp2", &["redis://:p%2Fw@h:1/2?protocol=resp2"])]
    #[case::user("rediss", "tasks@h", &["rediss://tasks:p%2Fw@h"])]
    #[case::replaces_a_password("redis", "tasks:old@h", &["redis://tasks:p%2Fw@h"])]
    #[case::cluster("rediss+cluster", "u@a:1,b", &["rediss://u:p%2Fw@a:1", "rediss://u:p%2Fw@b"])]
    #[case::sentinel("redis+sentinel", "u@a:1,b:2/m/3", &["redis://a:1", "redis://b:2", "redis://u:p%2Fw@m/3"])]
    fn the_password_of_the_file_reaches_every_server_that_needs_it(
        #[case] scheme: &str,
        #[case] rest: &str,
        #[case] urls: &[&str],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "p/w\n").unwrap();
        let Ok(location) = RedisLocation::read(scheme, rest, false, &args(Some(&file))) else {
            panic!("{rest}")
        };
        assert_eq!(location.urls().unwrap_or_else(|failure| panic!("{failure:?}")), urls);
    }

    #[test]
    fn sentinels_need_the_name_of_a_master() {
        for rest in ["a:1,b:2", "a:1/"] {
            let location = RedisLocation::read("redis+sentinel", rest, true, &args(None));
            let urls = location.and_then(|location| location.urls());
            assert!(matches!(urls, Err(Failure::Usage(text)) if text.contains("MASTER")));
        }
    }
}
