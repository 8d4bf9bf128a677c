//! A real Triton beside.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::{CLIENT, LoadKind, LoadTarget};

/// The models of Triton: one Python model, computed and out of the response cache.
const TRITON_MODELS: [(&str, &str); 2] = [
    ("identity", "Python backend"),
    ("identity_cached", "response cache, no execution"),
];

/// A running Triton.
pub(super) struct Triton {
    child: Child,
    http_port: u16,
    grpc_port: u16,
}

impl Triton {
    /// Long: the script may have to install it first.
    const START: Duration = Duration::from_secs(300);

    pub(super) fn start(script: &Path) -> Result<Self> {
        // Bound and let go again, so that the ports are free now.
        let ports: Vec<std::net::TcpListener> = (0..3)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let port = |index: usize| -> Result<u16> { Ok(ports[index].local_addr()?.port()) };
        let (http_port, grpc_port, metrics_port) = (port(0)?, port(1)?, port(2)?);
        drop(ports);
        let child = Command::new("bash")
            .arg(script)
            .args([http_port, grpc_port, metrics_port].map(|port| port.to_string()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut triton = Self {
            child,
            http_port,
            grpc_port,
        };
        let began = Instant::now();
        while !triton.is_ready() {
            if let Some(status) = triton.child.try_wait()? {
                bail!(
                    "{} ended: {status}; run it by hand to see why",
                    script.display()
                );
            }
            ensure!(
                began.elapsed() < Self::START,
                "Triton does not become ready"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(triton)
    }

    fn is_ready(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/v2/health/ready", self.http_port);
        let curl = Command::new("curl").args(["-sf", &url]).status();
        curl.is_ok_and(|status| status.success())
    }

    pub(super) fn targets(&self) -> Vec<LoadTarget> {
        let mut targets = Vec::new();
        for (model, answered_by) in TRITON_MODELS {
            let mut add = |protocol, url, load| {
                targets.push(LoadTarget {
                    server: "Triton 2.51",
                    protocol,
                    answered_by: answered_by.to_owned(),
                    url,
                    model: model.to_owned(),
                    load,
                    pid: self.child.id(),
                    rounds: Vec::new(),
                });
            };
            let http = format!("http://127.0.0.1:{}", self.http_port);
            add(
                "HTTP",
                format!("{http}/v2/models/{model}/infer"),
                LoadKind::Post,
            );
            // Not by `h2load`: with a response cache this Triton ends when `h2load` ends with calls under way.
            for (protocol, load) in CLIENT {
                add(
                    protocol,
                    format!("grpc://127.0.0.1:{}", self.grpc_port),
                    load,
                );
            }
        }
        targets
    }
}

impl Drop for Triton {
    fn drop(&mut self) {
        // No client waits for its answers; an error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
