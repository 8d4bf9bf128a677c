//! Log settings, as both protocols show and change them. What they mean is the process's business, not this crate's.

use std::fmt::Debug;

use skep_runtime::ErrorKind;

use crate::error::ApiError;

/// What is logged now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The file that is written, empty for standard error.
    pub file: String,
    /// Whether information is logged.
    pub info: bool,
    /// Whether warnings are logged.
    pub warning: bool,
    /// Whether errors are logged.
    pub error: bool,
    /// How much more is logged.
    pub verbose_level: u32,
    /// The form of lines.
    pub format: String,
}

/// A change of settings; what is `None` stays.
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

/// The format that a change asks for is none; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownLogFormat;

/// Whoever logs for the process.
pub trait LogControl: Debug + Send + Sync {
    /// The settings now.
    fn settings(&self) -> LogSettings;

    /// Changes all that is asked for, or nothing; in effect when it returns.
    ///
    /// # Errors
    /// [`UnknownLogFormat`].
    fn change(&self, change: &LogChange) -> Result<(), UnknownLogFormat>;
}

/// Where the value of a setting goes, which says of what type it is.
pub(crate) enum SettingSlot<'a> {
    Flag(&'a mut Option<bool>),
    Level(&'a mut Option<u32>),
    Text(&'a mut Option<String>),
}

impl LogChange {
    /// The place of a setting's value; `None` for a name that is none, which Triton passes over.
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

    /// Makes the change; the settings after it. `format_name` is what the protocol calls the format in its error.
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
