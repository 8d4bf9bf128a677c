//! Flags about restricted calls.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use skep_server::{RestrictionError, Restrictions};

/// What more than anybody writes into such a file has.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Everybody may read.
const READABLE_BY_ALL: u32 = 0o004;

#[derive(Debug, Args)]
#[command(next_help_heading = "Restricted calls")]
pub(super) struct RestrictArgs {
    /// HTTP calls that ask for a header, `<api>[,<api>...]:<header>=<value>`; of health, metadata, inference,
    /// shared-memory, model-config, model-repository, statistics, trace, logging; may be given several times
    #[arg(long, value_name = "SETTING")]
    http_restricted_api: Vec<String>,
    /// gRPC calls that ask for a header, of the same groups; `triton-grpc-protocol-` comes before the header's name;
    /// may be given several times
    #[arg(long, value_name = "SETTING")]
    grpc_restricted_protocol: Vec<String>,
    /// A file of such settings, one a line, for both protocols. Process lists do not show its values, as they do a
    /// flag's. SIGHUP reads changed values (Skep's own)
    #[arg(long, value_name = "PATH")]
    restricted_api_file: Option<PathBuf>,
}

/// The restrictions of both protocols.
#[derive(Debug, Clone)]
pub(super) struct Restricted {
    pub(super) http: Restrictions,
    pub(super) grpc: Restrictions,
    file: Option<RestrictionFile>,
}

/// Those of a file, which are part of both.
#[derive(Debug, Clone)]
pub(super) struct RestrictionFile {
    path: PathBuf,
    http: Restrictions,
    grpc: Restrictions,
}

impl RestrictArgs {
    pub(super) fn read(&self) -> anyhow::Result<Restricted> {
        let mut http =
            Restrictions::http(&self.http_restricted_api).context("--http-restricted-api")?;
        let mut grpc = Restrictions::grpc(&self.grpc_restricted_protocol)
            .context("--grpc-restricted-protocol")?;
        let file = self
            .restricted_api_file
            .as_deref()
            .map(|path| RestrictionFile::read(path, skep_host::read_named_text));
        let file = file.transpose().context("--restricted-api-file")?;
        if let Some(file) = &file {
            http = (http.and(&file.http))
                .context("--restricted-api-file and --http-restricted-api")?;
            grpc = (grpc.and(&file.grpc))
                .context("--restricted-api-file and --grpc-restricted-protocol")?;
        }
        Ok(Restricted { http, grpc, file })
    }
}

impl Restricted {
    /// Warns of groups that one of two open ports restricts: a client without the header can use the other one.
    pub(super) fn warn_of_open_doors(&self, serves_http: bool, serves_grpc: bool) {
        if !(serves_http && serves_grpc) {
            return;
        }
        for (groups, by, other, flag) in [
            (
                self.http.beyond(&self.grpc),
                "--http-restricted-api",
                "gRPC",
                "--grpc-restricted-protocol",
            ),
            (
                self.grpc.beyond(&self.http),
                "--grpc-restricted-protocol",
                "HTTP",
                "--http-restricted-api",
            ),
        ] {
            if !groups.is_empty() {
                let groups = groups.join(",");
                let off = other.to_ascii_lowercase();
                tracing::warn!(
                    "{by} restricts {groups}, which {other} answers without restriction\n  restrict it there too with `{flag}={groups}:<header>=<value>`, both at once with `--restricted-api-file`, or close that port with `--allow-{off}=false`"
                );
            }
        }
    }

    pub(super) fn file(&self) -> Option<RestrictionFile> {
        self.file.clone()
    }
}

impl RestrictionFile {
    /// `text` reads a file of at most so many bytes.
    fn read(
        path: &Path,
        text: impl FnOnce(&Path, u64) -> io::Result<String>,
    ) -> anyhow::Result<Self> {
        let named = || format!("`{}`", path.display());
        let metadata = fs::metadata(path).with_context(named)?;
        if metadata.is_file() && metadata.mode() & READABLE_BY_ALL != 0 {
            tracing::warn!(
                "`{}`, whose values are secrets, can be read by every user of this machine\n  try: `chmod o-r`",
                path.display()
            );
        }
        let text = text(path, MAX_FILE_BYTES).with_context(named)?;
        let (mut http, mut grpc) = (Restrictions::default(), Restrictions::default());
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let of_line = |error: RestrictionError| match error {
                // It would show the line, and with it a secret.
                RestrictionError::Form(_) => anyhow::anyhow!("expected <names>:<key>=<value>"),
                other => other.into(),
            };
            let place = || format!("{}:{}", named(), index + 1);
            let setting = [line.to_owned()];
            let add = |all: Restrictions, one: Result<Restrictions, RestrictionError>| {
                one.and_then(|one| all.and(&one)).map_err(of_line)
            };
            http = add(http, Restrictions::http(&setting)).with_context(place)?;
            grpc = add(grpc, Restrictions::grpc(&setting)).with_context(place)?;
        }
        Ok(Self {
            path: path.to_owned(),
            http,
            grpc,
        })
    }

    /// Reads the values again, and says what came of it.
    pub(super) fn read_again(&self) {
        let path = self.path.display();
        if fs::metadata(&self.path).is_ok_and(|metadata| !metadata.is_file()) {
            tracing::warn!(
                "restricted calls keep their values: `{path}` is not a regular file, and the server reads a pipe only at its start"
            );
            return;
        }
        // Another kind of file may have come in its place meanwhile; a pipe would keep this thread for ever.
        match Self::read(&self.path, skep_host::read_text) {
            Ok(new) if self.http.take_values(&new.http) && self.grpc.take_values(&new.grpc) => {
                tracing::info!("restricted calls now ask for the values in `{path}`");
            }
            Ok(_) => tracing::warn!(
                "restricted calls keep their values: `{path}` names other groups or headers, which take effect at the next start"
            ),
            Err(error) => tracing::warn!("restricted calls keep their values: {error:#}"),
        }
    }
}
