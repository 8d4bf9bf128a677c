//! What is traced: Triton's settings, and changes of them.

use std::fmt;

/// What a trace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceLevels {
    /// When a request reached which point.
    pub timestamps: bool,
    /// The values of its inputs and outputs.
    pub tensors: bool,
}

impl TraceLevels {
    /// Nothing is traced.
    pub const OFF: Self = Self {
        timestamps: false,
        tensors: false,
    };

    /// Whether nothing is traced.
    #[must_use]
    pub fn is_off(self) -> bool {
        self == Self::OFF
    }

    /// The names of the levels that are on; only `OFF` if none is.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let names = [(self.timestamps, "TIMESTAMPS"), (self.tensors, "TENSORS")];
        let names: Vec<_> = names
            .into_iter()
            .filter_map(|(is_on, name)| is_on.then_some(name))
            .collect();
        if names.is_empty() { vec!["OFF"] } else { names }
    }

    /// These levels and the named one. `MIN` and `MAX` are Triton's older names of `TIMESTAMPS`, and `OFF` adds nothing.
    #[must_use]
    pub fn with(self, name: &str) -> Option<Self> {
        match name {
            "OFF" => Some(self),
            "TIMESTAMPS" | "MIN" | "MAX" => Some(Self {
                timestamps: true,
                ..self
            }),
            "TENSORS" => Some(Self {
                tensors: true,
                ..self
            }),
            _ => None,
        }
    }
}

/// The settings of the server, or of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceSettings {
    /// What a trace has.
    pub levels: TraceLevels,
    /// One request in so many is traced; at least 1.
    pub rate: u32,
    /// How many requests are still traced; `None` for no bound.
    pub count: Option<u32>,
    /// How many traces go to one file; 0 for all to one.
    pub log_frequency: u32,
}

impl Default for TraceSettings {
    /// Triton's defaults.
    fn default() -> Self {
        Self {
            levels: TraceLevels::OFF,
            rate: 1000,
            count: None,
            log_frequency: 0,
        }
    }
}

/// A change of one setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SettingChange<T> {
    /// It stays.
    #[default]
    Keep,
    /// The value of the command line for the server, the server's value for a model.
    Clear,
    /// A value.
    Set(T),
}

/// A change of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceChange {
    /// What a trace has.
    pub levels: SettingChange<TraceLevels>,
    /// One request in so many is traced; 0 is refused where something is traced.
    pub rate: SettingChange<u32>,
    /// How many requests are still traced; `None` for no bound.
    pub count: SettingChange<Option<u32>>,
    /// How many traces go to one file.
    pub log_frequency: SettingChange<u32>,
}

/// Where traces go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceMode {
    /// A file.
    Triton,
    /// A collector of OpenTelemetry.
    OpenTelemetry,
}

impl fmt::Display for TraceMode {
    /// Triton's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Triton => "triton",
            Self::OpenTelemetry => "opentelemetry",
        })
    }
}
