//! Runs `skep_fuzz::config::pbtxt`, and holds the parser against prost-reflect's.
#![no_main]

use prost_reflect::DynamicMessage;
use skep_config::parse_pbtxt;
use skep_fuzz::config;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    config::pbtxt(data);
    other_implementation(data);
});

/// What both take means the same to both, and what the other one writes is taken.
fn other_implementation(data: &[u8]) {
    let Ok(own) = parse_pbtxt(data, "config.pbtxt") else {
        return;
    };
    let text = std::str::from_utf8(data).expect("taken");
    let descriptor = skep_proto::descriptors()
        .get_message_by_name("inference.ModelConfig")
        .expect("the schema");
    if let Ok(other) = DynamicMessage::parse_text_format(descriptor.clone(), text) {
        config::assert_same(&own, &other.transcode_to().expect("of one schema"));
    }
    let mut message = DynamicMessage::new(descriptor);
    message.transcode_from(&own).expect("of one schema");
    let written = message.to_text_format();
    match parse_pbtxt(written.as_bytes(), "written") {
        Ok(read) => config::assert_same(&own, &read),
        Err(error) => panic!("{error}: {written}"),
    }
}
