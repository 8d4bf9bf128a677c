//! A request in the access log: a line of words, or a JSON object.

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use skep_server::{AccessRecord, AccessStatus};

use crate::logging::UTC;

/// Microseconds, as all times of the log are given.
fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A value that stands in a line of words: in quotes where it would not be one word.
fn word(text: &str) -> String {
    let mut letters = text.chars();
    if !text.is_empty() && letters.all(|c| c.is_alphanumeric() || "-_.:/%".contains(c)) {
        text.to_owned()
    } else {
        json!(text).to_string()
    }
}

pub(super) fn text(record: &AccessRecord<'_>, now: Timestamp) -> String {
    let status = match record.status {
        AccessStatus::Http(status) => status.to_string(),
        AccessStatus::Grpc(name) => name.to_owned(),
        AccessStatus::Left => "-".to_owned(),
    };
    let mut line = format!(
        "{} {} {} {} {} {status} total_us={} bytes_in={} bytes_out={}",
        now.strftime(UTC),
        record.client,
        record.protocol,
        record.method,
        word(record.path),
        us(record.total),
        record.bytes_in,
        record.bytes_out,
    );
    let mut put = |name: &str, value: String| {
        write!(line, " {name}={value}").expect("a string takes all");
    };
    if let Some(inference) = record.inference {
        put("model", word(inference.model.as_str()));
        put("version", inference.version.to_string());
        if !inference.id.is_empty() {
            put("id", word(&inference.id));
        }
        if let Some(timing) = &inference.timing {
            put("queue_us", us(timing.queue).to_string());
            put("compute_us", us(compute(timing)).to_string());
            put("batch_size", timing.batch_size.to_string());
            put("reason", timing.batch_end.to_owned());
        }
    }
    if let Some(error) = record.error {
        put("error", word(error));
    }
    line.push('\n');
    line
}

pub(super) fn object(record: &AccessRecord<'_>, now: Timestamp) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        object.insert(name.to_owned(), value);
    };
    put("time", json!(now.strftime(UTC).to_string()));
    put("client", json!(record.client.to_string()));
    put("protocol", json!(record.protocol));
    put("method", json!(record.method));
    put("path", json!(record.path));
    put(
        "status",
        match record.status {
            AccessStatus::Http(status) => json!(status),
            AccessStatus::Grpc(name) => json!(name),
            AccessStatus::Left => Value::Null,
        },
    );
    put("total_us", json!(us(record.total)));
    put("bytes_in", json!(record.bytes_in));
    put("bytes_out", json!(record.bytes_out));
    if let Some(inference) = record.inference {
        put("model", json!(inference.model.as_str()));
        put("version", json!(inference.version.get()));
        put("id", json!(inference.id));
        if let Some(timing) = &inference.timing {
            put("queue_us", json!(us(timing.queue)));
            put("compute_input_us", json!(us(timing.compute_input)));
            put("compute_infer_us", json!(us(timing.compute_infer)));
            put("compute_output_us", json!(us(timing.compute_output)));
            put("compute_us", json!(us(compute(timing))));
            put("batch_size", json!(timing.batch_size));
            put("reason", json!(timing.batch_end));
        }
    }
    if let Some(error) = record.error {
        put("error", json!(error));
    }
    Value::Object(object)
}

fn compute(timing: &skep_runtime::Timing) -> Duration {
    timing.compute_input + timing.compute_infer + timing.compute_output
}

#[cfg(test)]
pub(super) mod tests {
    use skep_runtime::Timing;
    use skep_server::InferenceRecord;
    use skep_types::{ModelName, ModelVersion};

    use super::*;

    fn inference(timing: Option<Timing>) -> InferenceRecord {
        InferenceRecord {
            model: ModelName::new("digits").expect("a name"),
            version: ModelVersion::new(1).expect("a version"),
            id: "a \"7\"\n".to_owned(),
            timing,
        }
    }

    fn timing() -> Timing {
        Timing {
            queue: Duration::from_micros(35),
            compute_input: Duration::from_micros(1),
            compute_infer: Duration::from_micros(640),
            compute_output: Duration::from_micros(2),
            batch_size: 4,
            batch_end: "max_batch_size",
        }
    }

    pub(in super::super) fn record<'a>(
        inference: Option<&'a InferenceRecord>,
        status: AccessStatus,
        error: Option<&'a str>,
    ) -> AccessRecord<'a> {
        AccessRecord {
            client: "127.0.0.1:9".parse().expect("an address"),
            protocol: "HTTP/1.1",
            method: "POST",
            path: "/v2/models/digits/infer",
            status,
            total: Duration::from_micros(812),
            bytes_in: 95,
            bytes_out: 120,
            inference,
            error,
        }
    }

    const START: &str =
        "1970-01-01T00:00:00.000000Z 127.0.0.1:9 HTTP/1.1 POST /v2/models/digits/infer";

    #[test]
    fn a_line_is_one_line_whatever_clients_send() {
        let now = Timestamp::UNIX_EPOCH;
        let ran = inference(Some(timing()));
        assert_eq!(
            text(&record(Some(&ran), AccessStatus::Http(200), None), now),
            format!(
                "{START} 200 total_us=812 bytes_in=95 bytes_out=120 model=digits version=1 id=\"a \\\"7\\\"\\n\" queue_us=35 compute_us=643 \
                 batch_size=4 reason=max_batch_size\n"
            )
        );
        let refused = inference(None);
        let refused = record(
            Some(&refused),
            AccessStatus::Grpc("UNAVAILABLE"),
            Some("no room"),
        );
        assert_eq!(
            text(&refused, now),
            format!(
                "{START} UNAVAILABLE total_us=812 bytes_in=95 bytes_out=120 model=digits version=1 id=\"a \\\"7\\\"\\n\" error=\"no room\"\n"
            )
        );
        assert_eq!(
            text(&record(None, AccessStatus::Left, None), now),
            format!("{START} - total_us=812 bytes_in=95 bytes_out=120\n")
        );
    }

    #[test]
    fn an_object_has_the_same_and_the_phases() {
        let ran = inference(Some(timing()));
        let object = object(
            &record(Some(&ran), AccessStatus::Http(200), None),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(object["status"], 200);
        assert_eq!(object["compute_infer_us"], 640);
        assert_eq!(object["compute_us"], 643);
        assert_eq!(
            (&object["bytes_in"], &object["bytes_out"]),
            (&json!(95), &json!(120))
        );
        assert_eq!(object["id"], "a \"7\"\n");
        assert!(object.get("error").is_none());
    }
}
