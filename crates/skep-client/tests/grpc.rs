//! The gRPC client against a stub that answers canned messages, statuses and nonsense.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use prost::Message;
use skep_client::{AnswerCode, Client, ClientOptions, Error, ErrorKind, GrpcClient, InferRequest};
use skep_proto::inference as pb;
use skep_types::ModelVersion;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{
    Status,
    body::Body,
    codegen::Service,
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};

/// The stub's answer to a call, by its name: a message's bytes or a status.
type Answer = fn(call: &str) -> Result<Vec<u8>, Status>;

#[derive(Clone)]
struct Stub(Answer);

impl NamedService for Stub {
    const NAME: &'static str = "inference.GRPCInferenceService";
}

impl Service<Request<Body>> for Stub {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = request.uri().path().rsplit('/').next().unwrap_or("");
        ready(Ok(match (self.0)(call) {
            Ok(message) => framed(&message),
            Err(status) => status.into_http(),
        }))
    }
}

/// One message in its frame, and the trailers of success.
fn framed(message: &[u8]) -> Response<Body> {
    let mut frame = BytesMut::from(&[0][..]);
    frame.put_u32(u32::try_from(message.len()).expect("small"));
    frame.extend_from_slice(message);
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(frame.freeze()).with_trailers(ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(body));
    let content_type = HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, content_type);
    response
}

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Running {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            Server::builder()
                .add_service(Stub(answer))
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), async {
                    let _ = stopped.await;
                })
                .await
                .expect("serves");
        });
        Self {
            address,
            stop,
            server,
        }
    }

    fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    async fn client(&self) -> GrpcClient {
        GrpcClient::connect(&self.url()).await.expect("connects")
    }
}

#[tokio::test]
async fn messages_become_the_crates_types() {
    let stub = Running::start(|call| {
        Ok(match call {
            "ServerLive" => pb::ServerLiveResponse { live: true }.encode_to_vec(),
            "ModelReady" => return Err(Status::not_found("no such model")),
            "RepositoryModelLoad" => Vec::new(),
            "ModelConfig" => pb::ModelConfigResponse {
                config: Some(pb::ModelConfig {
                    max_batch_size: 8,
                    ..Default::default()
                }),
            }
            .encode_to_vec(),
            "ModelStatistics" => pb::ModelStatisticsResponse {
                model_stats: vec![pb::ModelStatistics {
                    inference_count: 7,
                    ..Default::default()
                }],
            }
            .encode_to_vec(),
            "ModelInfer" => pb::ModelInferResponse {
                model_name: "m".to_owned(),
                model_version: "1".to_owned(),
                outputs: vec![pb::model_infer_response::InferOutputTensor {
                    name: "y".to_owned(),
                    datatype: "UINT8".to_owned(),
                    shape: vec![2],
                    ..Default::default()
                }],
                raw_output_contents: vec![Bytes::from_static(&[7, 9])],
                ..Default::default()
            }
            .encode_to_vec(),
            other => return Err(Status::unimplemented(other.to_owned())),
        })
    })
    .await;
    let client = Client::connect(&stub.url()).await.expect("connects");
    assert_eq!(client.live().await, Ok(true));
    assert_eq!(client.model_ready("m", None).await, Ok(false));
    assert_eq!(client.load("m").await, Ok(()));
    let config = client.model_config("m", None).await.expect("config");
    assert_eq!(config["max_batch_size"], 8);
    let statistics = client
        .statistics(Some("m"), Some(ModelVersion::ONE))
        .await
        .expect("statistics");
    assert_eq!(statistics[0].inference_count, 7);
    let response = client.infer(&InferRequest::new("m")).await.expect("answer");
    assert_eq!(
        response.output("y").map(|t| t.data().to_vec()),
        Some(vec![7, 9])
    );
    assert_eq!(
        client.unload("m").await,
        Err(Error::Status {
            code: AnswerCode::Grpc(12),
            message: "RepositoryModelUnload".to_owned()
        })
    );
}

#[tokio::test]
async fn unreadable_and_contradictory_answers_are_protocol_errors() {
    let stub = Running::start(|call| {
        Ok(match call {
            "ServerLive" => vec![0xff; 8],
            "ModelInfer" => pb::ModelInferResponse {
                raw_output_contents: vec![Bytes::new()],
                ..Default::default()
            }
            .encode_to_vec(),
            "ServerMetadata" => pb::ServerMetadataResponse {
                name: "x".repeat(100),
                ..Default::default()
            }
            .encode_to_vec(),
            _ => Vec::new(),
        })
    })
    .await;
    let options = ClientOptions {
        max_answer_bytes: 64,
        ..ClientOptions::default()
    };
    let client = GrpcClient::connect_with(&stub.url(), &options)
        .await
        .expect("connects");
    for (error, part) in [
        (client.live().await.expect_err("bytes"), "decode"),
        (
            client
                .infer(&InferRequest::new("m"))
                .await
                .expect_err("counts"),
            "0 outputs, but raw contents for 1",
        ),
        (
            client.server_metadata().await.expect_err("large"),
            "limit of 64 bytes",
        ),
        (
            client.model_config("m", None).await.expect_err("empty"),
            "no configuration",
        ),
    ] {
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_missing_server_differs_from_one_that_refuses() {
    let stub = Running::start(|_| Err(Status::unavailable("not ready"))).await;
    let client = stub.client().await;
    let refused = client.server_metadata().await.expect_err("refuses");
    assert_eq!(
        refused,
        Error::Status {
            code: AnswerCode::Grpc(14),
            message: "not ready".to_owned()
        }
    );

    stub.stop.send(()).expect("runs");
    stub.server.await.expect("ends");
    // The first call may still find the old connection; the second has to make a new one.
    let _ = client.live().await;
    let gone = client.live().await.expect_err("gone");
    assert_eq!(gone.kind(), ErrorKind::Connect, "{gone}");
    assert!(gone.to_string().contains(&stub.address.to_string()));

    let error = GrpcClient::connect(&format!("grpc://{}", stub.address))
        .await
        .expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

/// Reads a client's connection up to the first frame of a call.
async fn read_until_call(stream: &mut TcpStream) -> std::io::Result<()> {
    const PREFACE_BYTES: usize = 24;
    const HEADERS_FRAME: u8 = 1;
    stream.read_exact(&mut [0; PREFACE_BYTES]).await?;
    loop {
        // Length (24 bits), type, flags, stream.
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        if header[3] == HEADERS_FRAME {
            return Ok(());
        }
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("fits")];
        stream.read_exact(&mut payload).await?;
    }
}

#[tokio::test]
async fn a_connection_cut_during_a_call_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        read_until_call(&mut stream).await
    });
    let client = GrpcClient::connect(&format!("grpc://{address}"))
        .await
        .expect("connects");
    let error = client.live().await.expect_err("cut");
    server.await.expect("joins").expect("saw a call");
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
}
