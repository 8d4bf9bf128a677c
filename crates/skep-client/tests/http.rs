//! The HTTP client against a stub that answers canned bytes: what it sends, and how it takes answers and silence.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use skep_client::{AnswerCode, Client, ClientOptions, Encoding, Error, ErrorKind, HttpClient};
use skep_client::{InferRequest, WantedOutput};
use skep_tensor::Tensor;
use skep_types::{DataType, ModelVersion, Shape};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// The stub's answer to one request, byte for byte; after an incomplete answer the connection is closed.
type Answer = fn(request: &Request) -> Vec<u8>;

#[derive(Debug, Clone)]
struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn line(&self) -> &str {
        self.head
            .lines()
            .next()
            .unwrap_or("")
            .trim_end_matches(" HTTP/1.1")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

struct Stub {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Stub {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let stub = Self {
            address: listener.local_addr().expect("address"),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) = (Arc::clone(&stub.connections), Arc::clone(&stub.requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(converse(stream, answer, Arc::clone(&requests)));
            }
        });
        stub
    }

    fn client(&self) -> HttpClient {
        HttpClient::new(&format!("http://{}", self.address)).expect("URL")
    }

    fn limited(&self, max_answer_bytes: usize) -> HttpClient {
        let options = ClientOptions {
            max_answer_bytes,
            ..ClientOptions::default()
        };
        HttpClient::with_options(&format!("http://{}", self.address), &options).expect("URL")
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("lock").clone()
    }
}

async fn converse(stream: TcpStream, answer: Answer, requests: Arc<Mutex<Vec<Request>>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await {
        let bytes = answer(&request);
        requests.lock().expect("lock").push(request);
        let whole = bytes.starts_with(b"HTTP/1.1") && !bytes.ends_with(b"...");
        if stream.write_all(&bytes).await.is_err() || !whole {
            return;
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let mut request = Request {
        head: String::from_utf8(head).ok()?,
        body: Vec::new(),
    };
    let length = request
        .header("content-length")
        .and_then(|l| l.parse().ok())
        .unwrap_or(0);
    request.body = vec![0; length];
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn ok(body: &str) -> Vec<u8> {
    answer("200 OK", "", body.as_bytes())
}

fn bytes_tensor(values: &'static [u8]) -> Tensor {
    let shape = Shape::new(&[values.len()]).expect("shape");
    Tensor::new(DataType::Uint8, shape, Bytes::from_static(values)).expect("tensor")
}

#[tokio::test]
async fn calls_go_to_their_paths_over_one_connection() {
    let stub = Stub::start(|request| match request.line() {
        "GET /v2/health/ready" => answer("400 Bad Request", "", b""),
        "GET /v2/models/no/ready" => answer("404 Not Found", "", b""),
        "GET /v2" => ok(r#"{"name":"triton","version":"2","extensions":["statistics"]}"#),
        "GET /v2/models/m/versions/1/stats" => ok(r#"{"model_stats":[{"name":"m"}]}"#),
        "GET /v2/models/m/config" => ok(r#"{"name":"m","max_batch_size":8}"#),
        "GET /v2/models/m" => {
            ok(r#"{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1]}]}"#)
        }
        "POST /v2/repository/index" => ok(r#"[{"name":"m","version":"1","state":"READY"}]"#),
        _ => ok(""),
    })
    .await;
    let client = stub.client();
    assert_eq!(client.live().await, Ok(true));
    assert_eq!(client.ready().await, Ok(false));
    assert_eq!(client.model_ready("no", None).await, Ok(false));
    let server = client.server_metadata().await.expect("metadata");
    assert_eq!(server.extensions, ["statistics"]);
    let statistics = client
        .statistics(Some("m"), Some(ModelVersion::ONE))
        .await
        .expect("statistics");
    assert_eq!(statistics[0].name, "m");
    let config = client.model_config("m", None).await.expect("config");
    assert_eq!(config["max_batch_size"], 8);
    let model = client.model_metadata("m", None).await.expect("metadata");
    assert_eq!(model.inputs[0].shape.as_slice(), [-1]);
    assert_eq!(client.index(true).await.expect("index")[0].state, "READY");
    assert_eq!(client.load("m").await, Ok(()));
    assert_eq!(client.unload("a b").await, Ok(()));

    let requests = stub.requests();
    assert_eq!(requests[0].line(), "GET /v2/health/live");
    assert_eq!(requests[7].body, br#"{"ready":true}"#);
    assert_eq!(requests[8].line(), "POST /v2/repository/models/m/load");
    assert_eq!(
        requests[9].line(),
        "POST /v2/repository/models/a%20b/unload"
    );
    assert_eq!(stub.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn binary_inference_both_ways() {
    let stub = Stub::start(|request| {
        let json = r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}}]}"#;
        let header = format!("Inference-Header-Content-Length: {}\r\n", json.len());
        let blob = &request.body[request.body.len() - 2..];
        answer("200 OK", &header, &[json.as_bytes(), blob].concat())
    })
    .await;
    let mut request = InferRequest::new("m");
    request.inputs.push(("x".to_owned(), bytes_tensor(&[7, 9])));
    request.outputs.push(WantedOutput::new("y"));
    let client = stub.client();
    let response = client.infer(&request).await.expect("answer");
    assert_eq!(response.output("y"), Some(&bytes_tensor(&[7, 9])));

    let sent = stub.requests().remove(0);
    assert_eq!(sent.line(), "POST /v2/models/m/infer");
    assert_eq!(sent.header("transfer-encoding"), None);
    let length = sent.header("inference-header-content-length");
    let length: usize = length.and_then(|l| l.parse().ok()).expect("header");
    assert_eq!(sent.body.len(), length + 2);
}

#[tokio::test]
async fn json_inference_both_ways() {
    let stub = Stub::start(|_| {
        ok(r#"{"model_name":"m","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[NaN,0.5]}]}"#)
    })
    .await;
    let mut request = InferRequest::new("m");
    request.version = Some(ModelVersion::ONE);
    request.encoding = Encoding::Typed;
    request.inputs.push(("x".to_owned(), bytes_tensor(&[7, 9])));
    let response = stub.client().infer(&request).await.expect("answer");
    let expected = [f32::NAN.to_le_bytes(), 0.5f32.to_le_bytes()].concat();
    assert_eq!(response.version, "3");
    assert_eq!(
        response.output("y").map(|t| t.data().to_vec()),
        Some(expected)
    );
    let sent = stub.requests().remove(0);
    assert_eq!(sent.line(), "POST /v2/models/m/versions/1/infer");
    assert_eq!(
        sent.body,
        br#"{"inputs":[{"name":"x","datatype":"UINT8","shape":[2],"data":[7,9]}]}"#
    );
}

#[tokio::test]
async fn statuses_carry_the_servers_words() {
    let stub = Stub::start(|request| match request.line() {
        "GET /v2" => answer("502 Bad Gateway", "", b"upstream gone"),
        _ => answer(
            "404 Not Found",
            "",
            br#"{"error":"Request for unknown model: 'm' is not found"}"#,
        ),
    })
    .await;
    let client = stub.client();
    assert_eq!(
        client.model_metadata("m", None).await,
        Err(Error::Status {
            code: AnswerCode::Http(404),
            message: "Request for unknown model: 'm' is not found".to_owned()
        })
    );
    assert_eq!(
        client.server_metadata().await,
        Err(Error::Status {
            code: AnswerCode::Http(502),
            message: "upstream gone".to_owned()
        })
    );
}

#[tokio::test]
async fn a_refused_connection_names_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    drop(listener);
    let client = Client::connect(&format!("http://{address}"))
        .await
        .expect("URL");
    let error = client.live().await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Connect);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("could not reach `{address}`: Connection refused")),
        "{text}"
    );
    assert!(text.ends_with("\nis the server running?"), "{text}");
}

#[tokio::test]
async fn truncated_answers_and_non_http_answers_differ() {
    let stub = Stub::start(|request| match request.line() {
        "GET /v2/health/live" => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n...".to_vec(),
        "GET /v2/health/ready" => Vec::new(),
        "GET /v2" => b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
        _ => ok("<html>"),
    })
    .await;
    let client = stub.client();
    let kind = |error: Error| error.kind();
    assert_eq!(
        client.live().await.map_err(kind),
        Err(ErrorKind::Disconnected)
    );
    assert_eq!(
        client.ready().await.map_err(kind),
        Err(ErrorKind::Disconnected)
    );
    assert_eq!(
        client.server_metadata().await.map_err(kind),
        Err(ErrorKind::Protocol)
    );
    assert_eq!(
        client.index(false).await.map_err(kind),
        Err(ErrorKind::Protocol)
    );
}

#[tokio::test]
async fn answers_are_bounded_announced_or_not() {
    let stub = Stub::start(|request| match request.line() {
        "GET /v2" => b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n...".to_vec(),
        "GET /v2/health/live" => ok(&" ".repeat(64)),
        _ => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n28\r\n0123456789012345678901234567890123456789\r\n28\r\n0123456789012345678901234567890123456789\r\n...".to_vec(),
    })
    .await;
    let client = stub.limited(64);
    assert_eq!(client.live().await, Ok(true));
    for error in [
        client.server_metadata().await.expect_err("announced"),
        client.index(false).await.expect_err("chunked"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.to_string().contains("limit of 64 bytes"), "{error}");
    }
}

#[tokio::test]
async fn nonsense_is_refused_before_it_is_sent() {
    let stub = Stub::start(|_| ok("")).await;
    let client = stub.client();
    for result in [
        client.load("../m").await,
        client.model_ready("", None).await.map(|_| ()),
        client
            .statistics(None, Some(ModelVersion::ONE))
            .await
            .map(|_| ()),
    ] {
        assert_eq!(
            result.map_err(|error| error.kind()),
            Err(ErrorKind::InvalidArgument)
        );
    }
    assert_eq!(stub.connections.load(Ordering::Relaxed), 0);
}
