//! Sends requests of zeros to a server at given moments, and prints what each took: a client for benchmark scripts that
//! takes little of the machine.
//!
//! ```console
//! $ cargo run -p skep-perf --example open_loop -- http://localhost:8000 resnet < moments
//! ```
//!
//! `moments` has a line for each request: seconds after the start, ascending. Printed are the milliseconds from that moment
//! to the answer, in the same order. It ends with code 1 if a request was not answered.

use std::{error::Error, io::stdin, process::ExitCode, time::Duration};

use skep_client::{Client, InferRequest};
use skep_perf::{Fate, OpenLoop, open_loop};
use skep_tensor::Tensor;
use skep_types::Shape;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, model] = &arguments[..] else {
        return Err("expected a server's URL and a model".into());
    };
    let moments = stdin().lines().map(|line| {
        let seconds: f64 = line?.trim().parse()?;
        Ok(Duration::try_from_secs_f64(seconds)?)
    });
    let moments: Vec<Duration> = moments.collect::<Result<_, Box<dyn Error>>>()?;
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    reactor.block_on(play(url, model, &moments))
}

async fn play(url: &str, model: &str, moments: &[Duration]) -> Result<ExitCode, Box<dyn Error>> {
    let request = zeros(url, model).await?;
    let plan = OpenLoop {
        connections: 4,
        patience: Duration::from_secs(120),
    };
    for sent in open_loop(url, &request, plan, moments).await? {
        let Fate::Answered(took) = sent.fate else {
            return Ok(ExitCode::FAILURE);
        };
        println!("{:.4}", took.as_secs_f64() * 1e3);
    }
    Ok(ExitCode::SUCCESS)
}

/// A request of one inference; variable dimensions are 1.
async fn zeros(url: &str, model: &str) -> Result<InferRequest, Box<dyn Error>> {
    let metadata = Client::connect(url)
        .await?
        .model_metadata(model, None)
        .await?;
    let mut request = InferRequest::new(model);
    for input in metadata.inputs {
        let dims = input.shape.as_slice().iter();
        let dims: Vec<usize> = dims.map(|dim| usize::try_from(*dim).unwrap_or(1)).collect();
        let tensor = Tensor::zeros(input.datatype, Shape::new(&dims)?);
        request.inputs.push((input.name, tensor));
    }
    Ok(request)
}
