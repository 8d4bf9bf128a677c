//! The node's devices: sets of CPUs with memory, and the instances on them.
//!
//! A device is declared at the start. An instance of a group of `KIND_AUTO` claims its place on one before it starts, and
//! gives it back when its thread has ended. [`skep_placer::packing`] decides which device; this keeps the books.
//!
//! On a device a model counts with its weights once, and with what an instance adds for each further instance. Its size is
//! the estimate of residency until a load has measured it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use skep_host::lock;
use skep_placer::packing::{Arrival, NoDevice, OccupiedDevice, Resources, arrive};
use skep_types::CpuSet;

use crate::{
    error::{ErrorKind, RuntimeError},
    repository::ModelId,
    size_text::mebibytes,
};

/// A further instance is expected to take this much before one was measured: its thread, its buffers.
pub(crate) const INSTANCE_BYTES: u64 = 1 << 20;

/// A device as it was declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuDevice {
    /// Its name, for people.
    pub name: String,
    /// Its CPUs. No other device has one of them.
    pub cpus: CpuSet,
    /// What the models on it may hold, in bytes; more than nothing.
    pub memory_bytes: u64,
}

/// What a device has, and what its instances take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// The device.
    pub device: CpuDevice,
    /// Bytes that its models take.
    pub memory_used: u64,
    /// Thousandths of cores that its instances keep busy if all compute at once: maybe more than it has.
    pub millicores_used: u64,
    /// How many instances it has.
    pub instances: u32,
}

/// The devices of a node, with their books.
pub struct CpuDevices {
    devices: Vec<CpuDevice>,
    books: Mutex<BTreeMap<ModelId, ModelBook>>,
}

/// A model on the devices.
#[derive(Debug, Clone)]
struct ModelBook {
    /// Bytes of its weights and an instance.
    first_bytes: u64,
    /// Bytes that a further instance adds.
    further_bytes: u64,
    /// By device: its instances, and the thousandths of cores that they take.
    places: Vec<(u32, u64)>,
}

/// The place of an instance on a device; dropping it gives the place back.
pub(crate) struct DeviceClaim {
    devices: Arc<CpuDevices>,
    model: ModelId,
    /// The device's index.
    pub(crate) device: usize,
    millicores: u64,
}

impl CpuDevices {
    /// Devices without instances. There is at least one, and no two share a name or a CPU.
    #[must_use]
    pub fn new(devices: Vec<CpuDevice>) -> Arc<Self> {
        Arc::new(Self {
            devices,
            books: Mutex::default(),
        })
    }

    /// The devices with what is taken of them, in the order in which they were declared.
    #[must_use]
    pub fn report(&self) -> Vec<DeviceReport> {
        let books = self.books();
        let reports = self.devices.iter().enumerate().map(|(index, device)| {
            let taken = taken(&books, index);
            let instances = books.values().map(|book| book.places[index].0);
            DeviceReport {
                device: device.clone(),
                memory_used: taken.bytes,
                millicores_used: taken.millicores,
                instances: instances.sum(),
            }
        });
        reports.collect()
    }

    pub(crate) fn device(&self, index: usize) -> &CpuDevice {
        &self.devices[index]
    }

    /// The CPUs of the smallest device: threads beyond them would share cores where others might have some.
    pub(crate) fn least_cpus(&self) -> usize {
        let counts = self.devices.iter().map(|device| device.cpus.count());
        usize::try_from(counts.min().unwrap_or(1)).unwrap_or(1)
    }

    /// The CPUs of all devices together.
    pub(crate) fn cores(&self) -> usize {
        let counts = self.devices.iter().map(|device| device.cpus.count());
        usize::try_from(counts.sum::<u32>()).unwrap_or(usize::MAX)
    }

    fn books(&self) -> MutexGuard<'_, BTreeMap<ModelId, ModelBook>> {
        lock(&self.books)
    }

    fn new_book(&self) -> ModelBook {
        ModelBook {
            first_bytes: INSTANCE_BYTES,
            further_bytes: INSTANCE_BYTES,
            places: vec![(0, 0); self.devices.len()],
        }
    }

    /// Notes what a model takes: `bytes` with `instances`, of which a further one adds `instance_bytes`.
    pub(crate) fn sized(
        &self,
        model: &ModelId,
        bytes: u64,
        instances: u32,
        instance_bytes: Option<u64>,
    ) {
        let mut books = self.books();
        let book = books.entry(model.clone());
        let book = book.or_insert_with(|| self.new_book());
        book.further_bytes = instance_bytes.unwrap_or(INSTANCE_BYTES);
        let others = u64::from(instances.saturating_sub(1)).saturating_mul(book.further_bytes);
        book.first_bytes = bytes.saturating_sub(others).max(book.further_bytes);
    }

    /// Places for so many instances of a model, each with so many threads.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] if one of them has none, which says by how much each device is too small.
    pub(crate) fn claim(
        self: &Arc<Self>,
        model: &ModelId,
        instances: usize,
        threads: u32,
    ) -> Result<Vec<DeviceClaim>, RuntimeError> {
        let millicores = u64::from(threads) * 1000;
        let mut books = self.books();
        let chosen = self.choose(&books, model, instances, millicores)?;
        let book = books.entry(model.clone());
        let book = book.or_insert_with(|| self.new_book());
        let claims = chosen.into_iter().map(|device| {
            let (count, taken) = &mut book.places[device];
            *count += 1;
            *taken += millicores;
            DeviceClaim {
                devices: Arc::clone(self),
                model: model.clone(),
                device,
                millicores,
            }
        });
        Ok(claims.collect())
    }

    /// The index of the device that the first of so many further instances would get now.
    ///
    /// # Errors
    /// As [`CpuDevices::claim`].
    pub(crate) fn check(
        &self,
        model: &ModelId,
        instances: usize,
        threads: u32,
    ) -> Result<usize, RuntimeError> {
        let millicores = u64::from(threads) * 1000;
        let books = self.books();
        let chosen = self.choose(&books, model, instances, millicores)?;
        Ok(chosen.first().copied().unwrap_or(0))
    }

    fn choose(
        &self,
        books: &BTreeMap<ModelId, ModelBook>,
        model: &ModelId,
        instances: usize,
        millicores: u64,
    ) -> Result<Vec<usize>, RuntimeError> {
        let own = books.get(model);
        let bytes = own.map_or((INSTANCE_BYTES, INSTANCE_BYTES), |book| {
            (book.first_bytes, book.further_bytes)
        });
        let arrival = Arrival {
            instances,
            first_bytes: bytes.0,
            further_bytes: bytes.1,
            millicores,
        };
        let occupied = self.devices.iter().enumerate().map(|(index, device)| {
            let all = Resources {
                bytes: device.memory_bytes,
                millicores: u64::from(device.cpus.count()) * 1000,
            };
            OccupiedDevice {
                all,
                taken: taken(books, index),
                has_model: own.is_some_and(|book| book.places[index].0 > 0),
            }
        });
        let occupied: Vec<OccupiedDevice> = occupied.collect();
        let chosen = arrive(&arrival, &occupied);
        chosen.map_err(|refused| self.refusal(model, &arrival, &refused))
    }

    fn refusal(&self, model: &ModelId, arrival: &Arrival, refused: &NoDevice) -> RuntimeError {
        let devices = self.devices.iter().zip(&refused.devices);
        let lines = devices.map(|(device, shortage)| {
            let [needed, free, all, short] = [
                shortage.needed,
                shortage.free,
                device.memory_bytes,
                shortage.short(),
            ]
            .map(mebibytes);
            format!(
                "\n  device `{}` has {free} of {all} free and it needs {needed}: {short} too little",
                device.name
            )
        });
        let lines: String = lines.collect();
        let which = match refused.placed {
            0 => "no device has room for it".to_owned(),
            placed => format!(
                "no device has room for instance {} of {}",
                placed + 1,
                arrival.instances
            ),
        };
        let hint = "\n  give a device more memory (`--device`), unload another model, or set `kind: KIND_CPU`, which no device counts";
        RuntimeError::new(
            ErrorKind::Exhausted,
            format!("model '{model}' is not placed: {which}{lines}{hint}"),
        )
    }
}

/// What the instances on a device take.
fn taken(books: &BTreeMap<ModelId, ModelBook>, device: usize) -> Resources {
    let none = Resources::default();
    books.values().fold(none, |taken, book| {
        let (count, millicores) = book.places[device];
        let others = u64::from(count.saturating_sub(1)).saturating_mul(book.further_bytes);
        let bytes = match count {
            0 => 0,
            _ => book.first_bytes.saturating_add(others),
        };
        taken.plus(Resources { bytes, millicores })
    })
}

impl DeviceClaim {
    /// The device's CPUs.
    pub(crate) fn cpus(&self) -> &CpuSet {
        &self.devices.device(self.device).cpus
    }

    /// The device's name.
    pub(crate) fn name(&self) -> &str {
        &self.devices.device(self.device).name
    }
}

impl Drop for DeviceClaim {
    fn drop(&mut self) {
        let mut books = self.devices.books();
        if let Some(book) = books.get_mut(&self.model) {
            let (count, taken) = &mut book.places[self.device];
            *count = count.saturating_sub(1);
            *taken = taken.saturating_sub(self.millicores);
        }
    }
}

impl fmt::Debug for CpuDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.devices).finish()
    }
}

#[cfg(test)]
mod tests {
    use skep_types::ModelName;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn device(name: &str, cpus: &str, mib: u64) -> CpuDevice {
        CpuDevice {
            name: name.to_owned(),
            cpus: cpus.parse().expect("CPUs"),
            memory_bytes: mib * MIB,
        }
    }

    fn model(name: &str) -> ModelId {
        ModelId {
            namespace: None,
            name: ModelName::new(name).expect("a name"),
        }
    }

    fn used(devices: &CpuDevices) -> Vec<(u64, u64, u32)> {
        let report = devices.report();
        let of = |one: DeviceReport| (one.memory_used / MIB, one.millicores_used, one.instances);
        report.into_iter().map(of).collect()
    }

    #[test]
    fn a_place_is_taken_and_given_back() {
        let devices = CpuDevices::new(vec![device("a", "0-1", 100), device("b", "2", 100)]);
        assert_eq!(devices.least_cpus(), 1);
        let (one, other) = (model("one"), model("other"));
        // Two instances were measured together, and a further one adds two.
        devices.sized(&one, 42 * MIB, 2, Some(2 * MIB));
        devices.sized(&other, 70 * MIB, 1, None);
        let places = devices.claim(&one, 3, 1).expect("room");
        let names: Vec<&str> = places.iter().map(DeviceClaim::name).collect();
        assert_eq!(names, ["a", "a", "b"]);
        assert_eq!(used(&devices), [(42, 2000, 2), (40, 1000, 1)]);
        // 58 and 60 are free.
        assert!(devices.claim(&other, 1, 1).is_err());
        assert_eq!(used(&devices), [(42, 2000, 2), (40, 1000, 1)]);
        drop(places);
        assert_eq!(used(&devices), [(0, 0, 0), (0, 0, 0)]);
        let place = devices.claim(&other, 1, 4).expect("room");
        assert_eq!(place[0].cpus().to_string(), "0-1");
        assert_eq!(used(&devices), [(70, 4000, 1), (0, 0, 0)]);
    }

    #[test]
    fn a_refusal_says_what_each_device_lacks() {
        let devices = CpuDevices::new(vec![device("a", "0", 64), device("b", "1", 32)]);
        let small = model("small");
        devices.sized(&small, 4 * MIB, 1, None);
        let _place = devices.claim(&small, 1, 1).expect("room");
        let large = model("large");
        devices.sized(&large, 61 * MIB, 1, None);
        let error = devices.check(&large, 1, 1).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        let text = error.to_string();
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("model 'large' is not placed: no device has room for it")
        );
        assert_eq!(
            lines.next(),
            Some("  device `a` has 60 MiB of 64 MiB free and it needs 61 MiB: 1 MiB too little")
        );
        assert_eq!(
            lines.next(),
            Some("  device `b` has 32 MiB of 32 MiB free and it needs 61 MiB: 29 MiB too little")
        );
        devices.sized(&large, 60 * MIB, 1, None);
        let error = devices.check(&large, 3, 1).expect_err("too many");
        assert!(
            error
                .to_string()
                .contains("no device has room for instance 2 of 3")
        );
    }
}
