//! A server of the gRPC health protocol for tests with real containers: `grpc-health PORT`.
//!
//! The status of a service is the content of the file `/tmp/<service>` (`SERVING`, `NOT_SERVING`, ...);
//! without the file the service is not known. `SLOW` never answers.

use std::net::Ipv4Addr;

use proto::grpc::health::v1::health_check_response::ServingStatus;
use proto::grpc::health::v1::health_server::{Health, HealthServer};
use proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Request, Response, Status};

struct Files;

#[tonic::async_trait]
impl Health for Files {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let said =
            std::fs::read_to_string(format!("/tmp/{service}")).map_err(|_| Status::not_found("unknown service"))?;
        let status = match said.trim() {
            "SLOW" => std::future::pending().await,
            said => ServingStatus::from_str_name(said).unwrap_or_default(),
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = futures::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only checks are answered"))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let port: u16 = std::env::args().nth(1).unwrap_or_default().parse()?;
    let server = tonic::transport::Server::builder().add_service(HealthServer::new(Files));
    Ok(server.serve((Ipv4Addr::UNSPECIFIED, port).into()).await?)
}
