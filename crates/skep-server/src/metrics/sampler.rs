//! Figures over an interval: utilization of the processors, and the share of time in which each instance was busy.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    thread,
    time::Instant,
};

use skep_runtime::{LoadedVersion, Runtime};

use super::host::{self, HostReading};

/// An instance: model, version and name.
type InstanceKey = (String, String, String);

/// Shares of the last interval.
#[derive(Debug, Clone, Default)]
pub(super) struct MetricsSample {
    /// Processors and memory; `None` if they are not shown.
    pub(super) host: Option<HostSample>,
    /// By instance, between 0 and 1.
    busy: HashMap<InstanceKey, f64>,
    /// The same for the device.
    pub(super) device_busy: f64,
}

/// Processors and memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HostSample {
    pub(super) utilization: f64,
    pub(super) memory_total: u64,
    pub(super) memory_used: u64,
}

impl MetricsSample {
    /// The share of an instance; zero if it is newer than the sample.
    pub(super) fn busy(&self, loaded: &LoadedVersion, instance: &str) -> f64 {
        self.busy
            .get(&key(loaded, instance))
            .copied()
            .unwrap_or(0.0)
    }
}

fn key(loaded: &LoadedVersion, instance: &str) -> InstanceKey {
    (
        loaded.name().to_string(),
        loaded.version().to_string(),
        instance.to_owned(),
    )
}

/// Takes samples; each covers the time since the previous one.
#[derive(Debug)]
pub(super) struct Sampler {
    state: Mutex<SamplerState>,
    with_host: bool,
    began: Instant,
    cores: usize,
}

#[derive(Debug)]
struct SamplerState {
    at: Instant,
    reading: HostReading,
    busy_ns: HashMap<InstanceKey, u64>,
    latest: MetricsSample,
}

impl Sampler {
    pub(super) fn new(with_host: bool) -> Self {
        let began = Instant::now();
        let reading = host::read(began.elapsed());
        let host = HostSample {
            utilization: 0.0,
            memory_total: reading.memory_total,
            memory_used: reading.memory_used,
        };
        let state = SamplerState {
            at: began,
            reading,
            busy_ns: HashMap::new(),
            latest: MetricsSample {
                host: with_host.then_some(host),
                ..Default::default()
            },
        };
        Self {
            state: Mutex::new(state),
            with_host,
            began,
            cores: thread::available_parallelism().map_or(1, usize::from),
        }
    }

    pub(super) fn latest(&self) -> MetricsSample {
        self.lock().latest.clone()
    }

    /// Takes a sample. Reads files in /proc.
    pub(super) fn sample(&self, runtime: &Runtime) {
        let mut busy_ns = HashMap::new();
        for loaded in runtime.loaded() {
            for instance in loaded.statistics().instances {
                busy_ns.insert(key(&loaded, &instance.name), instance.busy_ns);
            }
        }
        let now = Instant::now();
        let reading = self.with_host.then(|| host::read(self.began.elapsed()));
        let mut state = self.lock();
        let elapsed_ns = now.saturating_duration_since(state.at).as_nanos() as f64;
        let busy = shares(&state.busy_ns, &busy_ns, elapsed_ns);
        let device_busy = device_share(busy.values().sum(), busy.len(), self.cores);
        let host = reading.map(|reading| HostSample {
            utilization: reading.utilization_since(&state.reading),
            memory_total: reading.memory_total,
            memory_used: reading.memory_used,
        });
        state.latest = MetricsSample {
            host,
            busy,
            device_busy,
        };
        state.reading = reading.unwrap_or_default();
        (state.at, state.busy_ns) = (now, busy_ns);
    }

    fn lock(&self) -> MutexGuard<'_, SamplerState> {
        // Each change replaces the whole value.
        skep_host::lock(&self.state)
    }
}

/// The share of the elapsed time that each instance worked. An instance that is new or was restarted counts from zero.
fn shares(
    before: &HashMap<InstanceKey, u64>,
    now: &HashMap<InstanceKey, u64>,
    elapsed_ns: f64,
) -> HashMap<InstanceKey, f64> {
    let share = |(key, busy): (&InstanceKey, &u64)| {
        let earlier = before.get(key).copied().filter(|earlier| earlier <= busy);
        let worked = busy - earlier.unwrap_or(0);
        let share = if elapsed_ns > 0.0 {
            (worked as f64 / elapsed_ns).min(1.0)
        } else {
            0.0
        };
        (key.clone(), share)
    };
    now.iter().map(share).collect()
}

/// The share of the device's slots that held a batch; it has as many slots as instances can run at once.
fn device_share(busy: f64, instances: usize, cores: usize) -> f64 {
    let slots = instances.min(cores).max(1);
    (busy / slots as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(figures: &[(&str, u64)]) -> HashMap<InstanceKey, u64> {
        let key = |name: &str| ("m".to_owned(), "1".to_owned(), name.to_owned());
        figures.iter().map(|(name, ns)| (key(name), *ns)).collect()
    }

    #[test]
    fn shares_are_of_the_time_since_the_last_sample() {
        let before = busy(&[("kept", 100), ("made again", 1000), ("gone", 5)]);
        let now = busy(&[
            ("kept", 150),
            ("made again", 20),
            ("new", 300),
            ("over", 9000),
        ]);
        let shares = shares(&before, &now, 200.0);
        let share = |name: &str| shares[&("m".to_owned(), "1".to_owned(), name.to_owned())];
        assert_eq!(shares.len(), 4);
        assert_eq!((share("kept"), share("made again")), (0.25, 0.1));
        assert_eq!((share("new"), share("over")), (1.0, 1.0));
    }

    #[test]
    fn a_device_is_full_when_every_core_or_every_instance_is_busy() {
        for (busy, instances, cores, expected) in [
            (1.0, 1, 8, 1.0),
            (1.0, 2, 8, 0.5),
            (1.0, 8, 2, 0.5),
            (4.0, 8, 2, 1.0),
            (0.0, 0, 2, 0.0),
        ] {
            assert_eq!(device_share(busy, instances, cores), expected);
        }
    }
}
