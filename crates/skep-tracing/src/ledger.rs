//! The settings of the server and of single models: what each is now, and the samplers that they make.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    sampler::Sampler,
    settings::{SettingChange, TraceChange, TraceLevels, TraceSettings},
};

/// The samplers in use.
#[derive(Debug)]
pub(crate) struct SamplerTable {
    pub(crate) server: Arc<Sampler>,
    /// Of models with settings of their own.
    pub(crate) models: HashMap<String, Arc<Sampler>>,
}

impl SamplerTable {
    pub(crate) fn of(&self, model: &str) -> &Arc<Sampler> {
        self.models.get(model).unwrap_or(&self.server)
    }

    /// Whether any request may be traced.
    pub(crate) fn is_on(&self) -> bool {
        self.server.is_on() || self.models.values().any(|sampler| sampler.is_on())
    }
}

/// What a model sets itself.
#[derive(Debug, Clone, Copy, Default)]
struct Overrides {
    levels: Option<TraceLevels>,
    rate: Option<u32>,
    count: Option<Option<u32>>,
    log_frequency: Option<u32>,
}

impl Overrides {
    const fn is_empty(&self) -> bool {
        self.levels.is_none()
            && self.rate.is_none()
            && self.count.is_none()
            && self.log_frequency.is_none()
    }

    fn over(&self, server: TraceSettings) -> TraceSettings {
        TraceSettings {
            levels: self.levels.unwrap_or(server.levels),
            rate: self.rate.unwrap_or(server.rate),
            count: self.count.unwrap_or(server.count),
            log_frequency: self.log_frequency.unwrap_or(server.log_frequency),
        }
    }
}

/// The settings of all.
#[derive(Debug)]
pub(crate) struct SettingsLedger {
    /// Those of the command line.
    first: TraceSettings,
    server: TraceSettings,
    models: BTreeMap<String, Overrides>,
    next_number: u64,
}

impl SettingsLedger {
    pub(crate) const fn new(first: TraceSettings) -> Self {
        Self {
            first,
            server: first,
            models: BTreeMap::new(),
            next_number: 0,
        }
    }

    /// The samplers at the start.
    pub(crate) fn samplers(&mut self) -> SamplerTable {
        SamplerTable {
            server: self.sampler(self.server),
            models: HashMap::new(),
        }
    }

    fn sampler(&mut self, settings: TraceSettings) -> Arc<Sampler> {
        self.next_number += 1;
        Arc::new(Sampler::new(&settings, self.next_number))
    }

    /// The settings of a model, or of the server, as `table` has counted down until now.
    pub(crate) fn settings(&self, model: Option<&str>, table: &SamplerTable) -> TraceSettings {
        let sampler = match model {
            Some(model) => table.of(model),
            None => &table.server,
        };
        let settings = match model.and_then(|model| self.models.get(model)) {
            Some(overrides) => overrides.over(self.server),
            None => self.server,
        };
        TraceSettings {
            count: sampler.left(),
            ..settings
        }
    }

    /// Makes a change if `check` accepts the settings that come of it. Returns the samplers from then on.
    ///
    /// # Errors
    /// What `check` says.
    pub(crate) fn change<E>(
        &mut self,
        model: Option<&str>,
        change: &TraceChange,
        table: &SamplerTable,
        check: impl Fn(&TraceSettings) -> Result<(), E>,
    ) -> Result<SamplerTable, E> {
        // The remaining count of the server is its value; that of a model, if it has set one.
        let server = TraceSettings {
            count: table.server.left(),
            ..self.server
        };
        match model {
            None => {
                let changed = change_server(server, self.first, change);
                check(&changed)?;
                for overrides in self.models.values() {
                    check(&overrides.over(changed))?;
                }
                self.server = changed;
            }
            Some(model) => {
                let mut overrides = self.counted(model, table);
                change_model(&mut overrides, change);
                check(&overrides.over(server))?;
                self.server = server;
                if overrides.is_empty() {
                    self.models.remove(model);
                } else {
                    self.models.insert(model.to_owned(), overrides);
                }
            }
        }
        Ok(self.renewed(model, table))
    }

    /// A model's own settings, with its count as it is now.
    fn counted(&self, model: &str, table: &SamplerTable) -> Overrides {
        let mut overrides = self.models.get(model).copied().unwrap_or_default();
        if let (Some(_), Some(sampler)) = (overrides.count, table.models.get(model)) {
            overrides.count = Some(sampler.left());
        }
        overrides
    }

    /// The samplers after a change of the server's settings, or of a model's. Others stay, and so does what they have
    /// counted.
    fn renewed(&mut self, changed: Option<&str>, table: &SamplerTable) -> SamplerTable {
        let server = match changed {
            None => self.sampler(self.server),
            Some(_) => Arc::clone(&table.server),
        };
        let names: Vec<String> = self.models.keys().cloned().collect();
        let mut models = HashMap::new();
        for name in names {
            let sampler = match (table.models.get(&name), changed) {
                (Some(kept), Some(model)) if model != name => Arc::clone(kept),
                (_, Some(_)) => self.sampler(self.models[&name].over(self.server)),
                (_, None) => {
                    let overrides = self.counted(&name, table);
                    self.models.insert(name.clone(), overrides);
                    self.sampler(overrides.over(self.server))
                }
            };
            models.insert(name, sampler);
        }
        SamplerTable { server, models }
    }
}

fn change_server(now: TraceSettings, first: TraceSettings, change: &TraceChange) -> TraceSettings {
    fn one<T>(now: T, first: T, change: SettingChange<T>) -> T {
        match change {
            SettingChange::Keep => now,
            SettingChange::Clear => first,
            SettingChange::Set(value) => value,
        }
    }
    TraceSettings {
        levels: one(now.levels, first.levels, change.levels),
        rate: one(now.rate, first.rate, change.rate),
        count: one(now.count, first.count, change.count),
        log_frequency: one(now.log_frequency, first.log_frequency, change.log_frequency),
    }
}

fn change_model(overrides: &mut Overrides, change: &TraceChange) {
    fn one<T>(now: &mut Option<T>, change: SettingChange<T>) {
        match change {
            SettingChange::Keep => {}
            SettingChange::Clear => *now = None,
            SettingChange::Set(value) => *now = Some(value),
        }
    }
    one(&mut overrides.levels, change.levels);
    one(&mut overrides.rate, change.rate);
    one(&mut overrides.count, change.count);
    one(&mut overrides.log_frequency, change.log_frequency);
}

#[cfg(test)]
mod tests {
    use super::*;
    use SettingChange::{Clear, Keep, Set};

    const ON: TraceLevels = TraceLevels {
        timestamps: true,
        tensors: false,
    };

    struct Bench {
        ledger: SettingsLedger,
        table: SamplerTable,
    }

    impl Bench {
        fn new(first: TraceSettings) -> Self {
            let mut ledger = SettingsLedger::new(first);
            let table = ledger.samplers();
            Self { ledger, table }
        }

        fn change(&mut self, model: Option<&str>, change: TraceChange) {
            let accept = |_: &TraceSettings| Ok::<_, ()>(());
            let changed = self.ledger.change(model, &change, &self.table, accept);
            self.table = changed.expect("accepted");
        }

        fn of(&self, model: Option<&str>) -> TraceSettings {
            self.ledger.settings(model, &self.table)
        }
    }

    fn on(rate: u32, count: Option<u32>) -> TraceSettings {
        TraceSettings {
            levels: ON,
            rate,
            count,
            log_frequency: 0,
        }
    }

    #[test]
    fn a_model_follows_the_server_where_it_sets_nothing() {
        let mut bench = Bench::new(on(5, None));
        assert_eq!(bench.of(Some("m")), on(5, None));
        bench.change(
            Some("m"),
            TraceChange {
                rate: Set(2),
                ..Default::default()
            },
        );
        assert_eq!(
            (bench.of(Some("m")), bench.of(None)),
            (on(2, None), on(5, None))
        );
        let change = TraceChange {
            rate: Set(9),
            count: Set(Some(4)),
            ..Default::default()
        };
        bench.change(None, change);
        assert_eq!(
            (bench.of(Some("m")), bench.of(None)),
            (on(2, Some(4)), on(9, Some(4)))
        );
        bench.change(
            Some("m"),
            TraceChange {
                rate: Clear,
                ..Default::default()
            },
        );
        assert_eq!(bench.of(Some("m")), on(9, Some(4)));
        assert!(bench.table.models.is_empty());
        let all = TraceChange {
            rate: Clear,
            count: Clear,
            ..Default::default()
        };
        bench.change(None, all);
        assert_eq!(bench.of(None), on(5, None));
    }

    #[test]
    fn a_change_of_another_setting_keeps_what_was_counted() {
        let mut bench = Bench::new(on(1, Some(3)));
        assert!(bench.table.of("m").takes(None));
        bench.change(
            None,
            TraceChange {
                log_frequency: Set(7),
                ..Default::default()
            },
        );
        assert_eq!(bench.of(None).count, Some(2));
        bench.change(
            Some("m"),
            TraceChange {
                count: Set(Some(5)),
                ..Default::default()
            },
        );
        assert!(bench.table.of("m").takes(None));
        bench.change(
            Some("n"),
            TraceChange {
                rate: Set(2),
                ..Default::default()
            },
        );
        bench.change(
            None,
            TraceChange {
                rate: Set(1),
                ..Default::default()
            },
        );
        bench.change(
            Some("m"),
            TraceChange {
                rate: Set(3),
                ..Default::default()
            },
        );
        assert_eq!(bench.of(Some("m")).count, Some(4));
        bench.change(
            Some("m"),
            TraceChange {
                count: Set(Some(6)),
                ..Default::default()
            },
        );
        assert_eq!(bench.of(Some("m")).count, Some(6));
        bench.change(
            Some("m"),
            TraceChange {
                count: Set(Some(4)),
                ..Default::default()
            },
        );
        bench.change(
            None,
            TraceChange {
                count: Clear,
                levels: Keep,
                ..Default::default()
            },
        );
        assert_eq!(
            (bench.of(Some("m")).count, bench.of(None).count),
            (Some(4), Some(3))
        );
    }

    #[test]
    fn a_refused_change_changes_nothing() {
        let mut bench = Bench::new(on(5, None));
        let change = TraceChange {
            rate: Set(0),
            ..Default::default()
        };
        for model in [None, Some("m")] {
            let refuse = |settings: &TraceSettings| {
                if settings.rate == 0 { Err(()) } else { Ok(()) }
            };
            let changed = bench.ledger.change(model, &change, &bench.table, refuse);
            assert!(changed.is_err());
            assert_eq!(
                (bench.of(None), bench.of(Some("m"))),
                (on(5, None), on(5, None))
            );
        }
    }
}
