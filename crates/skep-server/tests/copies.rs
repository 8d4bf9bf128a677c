//! How often a large tensor is copied on its way through a node, by the number of large allocations: nothing of its size
//! can be copied without memory of its size to go into.
//!
//! In: the body is put together once and the model runs on it in place. Out: the model writes the answer's memory once;
//! HTTP sends from there, a gRPC message is one copy more.

use std::{fs, future::poll_fn, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use skep_backend_mock::Mock;
use skep_heap::CountingHeap;
use skep_proto::inference::{ModelInferRequest, model_infer_request::InferInputTensor};
use skep_runtime::{
    BackendEntry, Backends, Control, LoadOptions, Repository, ResidencySettings, Runtime,
    RuntimeOptions,
};
use skep_server::{
    Addresses, Endpoint, GrpcConnections, InferenceOptions, Limits, LogChange, LogControl,
    LogSettings, MetricsPortOptions, Restrictions, Server, ServerOptions, UnknownLogFormat,
};
use skep_tensor::MemoryBudget;
use skep_tracing::{TraceOptions, Tracer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

/// The tensor.
const TENSOR_BYTES: usize = 16 << 20;

/// What the client sends and receives at once; its own memory must not count.
const PIECE_BYTES: usize = 64 << 10;

/// Counts allocations that could hold the tensor.
#[global_allocator]
static HEAP: CountingHeap = CountingHeap::of_blocks(TENSOR_BYTES / 2);

#[derive(Debug)]
struct NoLogs;

impl LogControl for NoLogs {
    fn settings(&self) -> LogSettings {
        LogSettings {
            file: String::new(),
            info: false,
            warning: false,
            error: false,
            verbose_level: 0,
            format: String::new(),
        }
    }

    fn change(&self, _: &LogChange) -> Result<(), UnknownLogFormat> {
        Ok(())
    }
}

/// A runtime with one model that answers with its input.
fn runtime(root: &Path) -> Arc<Runtime> {
    fs::create_dir_all(root.join("echo/1")).expect("directory");
    let config = r#"backend: "mock" max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: -1 } output { name: "y" data_type: TYPE_FP32 dims: -1 }
        parameters { key: "mock.output" value { string_value: "echo" } }"#;
    fs::write(root.join("echo/config.pbtxt"), config).expect("file");
    let mut backends = Backends::default();
    backends.add("mock", BackendEntry::new(|| Ok(Arc::new(Mock))));
    let options = RuntimeOptions {
        repository: Repository::open(vec![root.to_owned()]).expect("repository"),
        load: LoadOptions {
            auto_complete: true,
            backend_settings: Vec::new(),
            cores: NonZeroUsize::MIN,
            metrics: skep_runtime::MetricsOptions::default(),
            config_name: None,
            gpu_as_cpu: false,
            retries: 0,
            waiting_limit: Arc::default(),
            hold_until: 0,
            cpu: None,
            devices: None,
            profiles: None,
            response_cache: None,
            rate_limiter: None,
            weights: None,
            request_memory: None,
            sandbox_load_limit: None,
        },
        load_threads: 1,
        max_waiting_loads: 256,
        control: Control::None,
        strict_readiness: true,
        residency: ResidencySettings::default(),
    };
    let runtime = Runtime::new(options, backends);
    for (name, outcome) in runtime.start(None) {
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    runtime
}

/// A node that serves `runtime` until the sender is dropped.
fn serve(runtime: Arc<Runtime>) -> (Addresses, oneshot::Sender<()>) {
    let endpoint = Some(Endpoint {
        address: [127, 0, 0, 1].into(),
        port: 0,
        reuse: false,
        tls: None,
    });
    let patience = Duration::from_secs(60);
    let options = ServerOptions {
        http: endpoint.clone(),
        grpc: endpoint,
        metrics: None,
        metrics_options: MetricsPortOptions::default(),
        logs: Arc::new(NoLogs),
        traces: Tracer::start(TraceOptions::default()).expect("no thread is needed"),
        http_restrictions: Restrictions::default(),
        grpc_restrictions: Restrictions::default(),
        id: None,
        max_json_bytes: 1 << 20,
        exit_timeout: patience,
        inference: InferenceOptions::default(),
        limits: Limits {
            connections: 10,
            request_memory: MemoryBudget::new(1 << 30),
            head: patience,
            body: patience,
            write: patience,
            idle: patience,
            half_closed: patience,
            header_fields: 100,
        },
        grpc_connections: GrpcConnections::default(),
        access: None,
    };
    let server = Server::bind(&options, runtime).expect("ports");
    let addresses = server.addresses();
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(server.run(async move { drop(stopped.await) }));
    (addresses, stop)
}

/// The first part of a request, which the tensor's bytes follow.
fn http_head() -> Vec<u8> {
    let json = format!(
        r#"{{"inputs":[{{"name":"x","shape":[1,{}],"datatype":"FP32","parameters":{{"binary_data_size":{TENSOR_BYTES}}}}}],"outputs":[{{"name":"y","parameters":{{"binary_data":true}}}}]}}"#,
        TENSOR_BYTES / 4
    );
    let head = format!(
        "POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\nInference-Header-Content-Length: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        json.len(),
        json.len() + TENSOR_BYTES
    );
    [head, json].concat().into_bytes()
}

/// Sends the tensor over HTTP and reads the answer away; its status line and its size.
async fn over_http(stream: &mut TcpStream, piece: &mut [u8]) -> (String, usize) {
    stream.write_all(&http_head()).await.expect("written");
    for _ in 0..TENSOR_BYTES / PIECE_BYTES {
        stream.write_all(piece).await.expect("written");
    }
    let mut start = vec![0; 12];
    stream.read_exact(&mut start).await.expect("an answer");
    let mut bytes = start.len();
    loop {
        match stream.read(piece).await.expect("an answer") {
            0 => return (String::from_utf8(start).expect("text"), bytes),
            more => bytes += more,
        }
    }
}

/// The first part of a call, which the tensor's bytes follow.
fn grpc_head() -> Bytes {
    let message = ModelInferRequest {
        model_name: "echo".to_owned(),
        inputs: vec![InferInputTensor {
            name: "x".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, i64::try_from(TENSOR_BYTES / 4).expect("fits")],
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut body = message.encode_to_vec();
    // `raw_input_contents` is field 7.
    encode_key(7, WireType::LengthDelimited, &mut body);
    encode_varint(TENSOR_BYTES as u64, &mut body);
    let length = u32::try_from(body.len() + TENSOR_BYTES).expect("fits");
    [&[0][..], &length.to_be_bytes(), &body].concat().into()
}

/// Sends the tensor over gRPC and reads the answer away; its status and its size.
async fn over_grpc(sender: h2::client::SendRequest<Bytes>, piece: &Bytes) -> (String, usize) {
    let request = http::Request::post("http://h/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .body(())
        .expect("a request");
    let mut sender = sender.ready().await.expect("a connection");
    let (response, mut stream) = sender.send_request(request, false).expect("a stream");
    let mut left = vec![piece.clone(); TENSOR_BYTES / PIECE_BYTES];
    left.push(grpc_head());
    while let Some(mut piece) = left.pop() {
        while !piece.is_empty() {
            stream.reserve_capacity(piece.len());
            let room = poll_fn(|cx| stream.poll_capacity(cx)).await;
            let room = room.expect("open").expect("capacity").min(piece.len());
            let part = piece.split_to(room);
            let last = left.is_empty() && piece.is_empty();
            stream.send_data(part, last).expect("sent");
        }
    }
    let mut body = response.await.expect("an answer").into_body();
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        let data = data.expect("data");
        bytes += data.len();
        let released = body.flow_control().release_capacity(data.len());
        released.expect("released");
    }
    let trailers = body.trailers().await.expect("trailers").expect("a status");
    let status = trailers["grpc-status"].to_str().expect("text").to_owned();
    (status, bytes)
}

#[tokio::test]
async fn a_large_tensor_is_copied_once_on_its_way_in() {
    let root = tempfile::tempdir().expect("directory");
    let (addresses, stop) = serve(runtime(root.path()));
    let large = || HEAP.taken();
    let mut piece = BytesMut::zeroed(PIECE_BYTES);

    let address = addresses.http.expect("HTTP");
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let before = large();
        let (status, bytes) = over_http(&mut stream, &mut piece).await;
        assert_eq!(status, "HTTP/1.1 200");
        assert!(bytes > TENSOR_BYTES);
        assert_eq!(large() - before, 2, "the body, and what the model wrote");
    }

    let piece = piece.freeze();
    let address = addresses.grpc.expect("gRPC");
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    for _ in 0..3 {
        let before = large();
        let (status, bytes) = over_grpc(sender.clone(), &piece).await;
        assert_eq!(status, "0");
        assert!(bytes > TENSOR_BYTES);
        assert_eq!(
            large() - before,
            3,
            "the body, what the model wrote, and the answer's message"
        );
    }
    drop(stop);
}
