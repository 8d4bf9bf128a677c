//! Log settings, as both protocols show and change them. The process applies them, not this crate.

use std::fmt::Debug;

use skep_runtime::ErrorKind;

use crate::error::ApiError;

/// The current log settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The log file; empty for standard error.
    pub file: String,
    /// Whether information is logged.
    pub info: bool,
    /// Whether warnings are logged.
    pub warning: bool,
    /// Whether errors are logged.
    pub error: bool,
    /// The level of verbose logs.
    pub verbose_level: u32,
    /// The format of lines.
    pub format: String,
}

/// A change of settings; `None` leaves a setting unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogChange {
    /// Whether information is logged.
    pub info: Option<bool>,
    /// Whether warnings are logged.
    pub warning: Option<bool>,
    /// Whether errors are logged.
    pub error: Option<bool>,
    /// How much more is logged.
    pub verbose_level: Option<u32>,
    /// The form of lines.
    pub format: Option<String>,
}

/// The requested format is unknown; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownLogFormat;

/// The log settings of the process.
pub trait LogControl: Debug + Send + Sync {
    /// The current settings.
    fn settings(&self) -> LogSettings;

    /// Makes the whole change, or none of it; it is in effect on return.
    ///
    /// # Errors
    /// [`UnknownLogFormat`].
    fn change(&self, change: &LogChange) -> Result<(), UnknownLogFormat>;
}

/// The place of a setting's value, which tells its type.
pub(crate) enum SettingSlot<'a> {
    Flag(&'a mut Option<bool>),
    Level(&'a mut Option<u32>),
    Text(&'a mut Option<String>),
}

impl LogChange {
    /// The place of a setting's value; `None` for an unknown name, which Triton ignores.
    ///
    /// # Errors
    /// The file cannot be changed by request: clients must not choose what the server writes to.
    pub(crate) fn slot(&mut self, name: &str) -> Result<Option<SettingSlot<'_>>, ApiError> {
        Ok(Some(match name {
            "log_file" => {
                return Err(ApiError::new(
                    ErrorKind::Unsupported,
                    "log file location can not be updated through network protocol",
                ));
            }
            "log_info" => SettingSlot::Flag(&mut self.info),
            "log_warning" => SettingSlot::Flag(&mut self.warning),
            "log_error" => SettingSlot::Flag(&mut self.error),
            "log_verbose_level" => SettingSlot::Level(&mut self.verbose_level),
            "log_format" => SettingSlot::Text(&mut self.format),
            _ => return Ok(None),
        }))
    }

    /// Makes the change and returns the new settings. `format_name` is the protocol's name of the format, for the
    /// error.
    pub(crate) fn apply(
        &self,
        logs: &dyn LogControl,
        format_name: &str,
    ) -> Result<LogSettings, ApiError> {
        if logs.change(self).is_err() {
            let format = self.format.as_deref().unwrap_or_default();
            return Err(ApiError::invalid(format!(
                "invalid argument for {format_name}, got: {format}"
            )));
        }
        Ok(logs.settings())
    }
}
