//! Who gets a certificate, and what each certificate and token opens.

use std::time::Duration;

use crate::common::{Agent, EPOCH, Site, batch, bearer, csr, delivery, is_ack};
use sumun_collector::state;
use sumun_collector::tenant::ca::Ca;
use sumun_collector::tenant::identity::Identity;
use sumun_proto::v1::admin_client::AdminClient;
use sumun_proto::v1::create_token_request::Purpose;
use sumun_proto::v1::enrolment_client::EnrolmentClient;
use sumun_proto::v1::query_client::QueryClient;
use sumun_proto::v1::{AgentsRequest, CreateTokenRequest, EnrollRequest, RenewRequest};
use tonic::{Code, Request};

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolled_agent_delivers_and_is_listed() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    let reply = stream.deliver(delivery(EPOCH, 1, &batch(1, 3))).await;
    assert!(is_ack(&reply, 1), "{reply:?}");

    let listed = running.registry.snapshot("default");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, agent.id);
    assert_eq!(listed[0].name, "host-1");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_its_uses_and_its_time() {
    let site = Site::new().await;
    let running = site.start().await;
    let mut request = Request::new(CreateTokenRequest {
        purpose: Purpose::Enroll as i32,
        uses: 1,
        valid_seconds: 60,
        name: "one".into(),
    });
    bearer(&mut request, &site.admin_token());
    let channel = site.channel(None).await.expect("connected");
    let token = AdminClient::new(channel)
        .create_token(request)
        .await
        .expect("a token")
        .into_inner()
        .token;

    // Two at once: one use is one agent.
    let (a, b) = tokio::join!(site.enroll_with(&token), site.enroll_with(&token));
    assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1);
    let refused = site.enroll_with(&token).await.err().expect("used up");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("used up"), "{refused}");

    let database = state::open(&site.config().database()).await.expect("state");
    sqlx::query("UPDATE token SET expires_ns = 1, uses_left = 1 WHERE name = 'one'")
        .execute(&database)
        .await
        .expect("updated");
    database.close().await;
    let refused = site.enroll_with(&token).await.err().expect("expired");
    assert!(refused.message().contains("expired"), "{refused}");

    let refused = site
        .enroll_with("sumun_enroll_guess")
        .await
        .err()
        .expect("unknown");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = site
        .enroll_with(&site.admin_token())
        .await
        .err()
        .expect("an admin's");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(running.registry.snapshot("default").len(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_request_must_prove_its_key_and_costs_no_use() {
    let site = Site::new().await;
    let running = site.start().await;
    let (mut csr_der, _) = csr();
    let last = csr_der.len() - 1;
    csr_der[last] ^= 1;
    let channel = site.channel(None).await.expect("connected");
    let refused = EnrolmentClient::new(channel)
        .enroll(EnrollRequest {
            token: site.enroll_token(),
            csr_der,
            host_name: "h".into(),
            machine_id: "m".into(),
            proof: None,
        })
        .await
        .expect_err("not signed by its key");
    assert_eq!(refused.code(), Code::InvalidArgument);

    let database = state::open(&site.config().database()).await.expect("state");
    let left: i64 = sqlx::query_scalar("SELECT uses_left FROM token WHERE purpose = 'enroll'")
        .fetch_one(&database)
        .await
        .expect("a row");
    database.close().await;
    assert_eq!(left, 100);
    running.stop().await;
}

/// A certificate of the collector's own CA for whoever is named.
fn forged(site: &Site, ca_dir: &std::path::Path, uri: &str) -> Agent {
    let ca = Ca::load(ca_dir).expect("a CA");
    let identity = Identity::from_uri(uri).expect("an identity");
    let (csr_der, key) = csr();
    let issued = ca
        .issue_agent(&csr_der, &identity, Duration::from_secs(60))
        .expect("a certificate");
    let _ = site;
    Agent {
        id: identity.agent.to_string(),
        certificate: issued.pem,
        key,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_strangers_open_nothing() {
    let site = Site::new().await;
    let other = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;

    // Of another CA: the handshake fails, with the name of a known agent too.
    let known = format!("spiffe://sumun/tenant/default/agent/{}", agent.id);
    let stranger = forged(&other, &other.config().ca_dir(), &known);
    assert!(stranger.stream(&site).await.is_err());

    // Of this CA, naming nobody.
    for uri in [
        "spiffe://sumun/tenant/default/agent/00000000-0000-4000-8000-000000000000".to_owned(),
        format!("spiffe://sumun/tenant/other/agent/{}", agent.id),
    ] {
        let stranger = forged(&site, &site.config().ca_dir(), &uri);
        let refused = stranger.stream(&site).await.err().expect("refused");
        assert_eq!(refused.code(), Code::PermissionDenied, "{uri}: {refused}");
    }

    // None at all.
    let nobody = site.channel(None).await.expect("connected");
    let mut client = sumun_proto::v1::ingest_client::IngestClient::new(nobody);
    let refused = client
        .renew(RenewRequest { csr_der: csr().0 })
        .await
        .expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);

    // The real one still works.
    agent.stream(&site).await.expect("a stream");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_opens_renewal_only() {
    let site = Site::with(&[("certificate_seconds", 3)]).await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("still valid");
    // The stream does not outlive the certificate.
    let ended = stream.reply().await.expect_err("ended");
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    let refused = agent.stream(&site).await.err().expect("expired");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("expired"), "{refused}");
    let listed = running.registry.snapshot("default");
    assert_eq!(listed[0].state.reason(), "expired");

    let (csr_der, key) = csr();
    let renewed = agent
        .client(&site)
        .await
        .expect("connected")
        .renew(RenewRequest { csr_der })
        .await
        .expect("renewed")
        .into_inner();
    let agent = Agent {
        id: agent.id,
        certificate: renewed.certificate_pem,
        key,
    };
    agent.stream(&site).await.expect("the new one is good");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_grace_the_handshake_fails() {
    let site = Site::with(&[("certificate_seconds", 2), ("renewal_grace_seconds", 0)]).await;
    let running = site.start().await;
    let agent = site.enroll().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let renewed = match agent.client(&site).await {
        Ok(mut client) => client
            .renew(RenewRequest { csr_der: csr().0 })
            .await
            .is_ok(),
        Err(_) => false,
    };
    assert!(!renewed);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_need_a_token() {
    let site = Site::new().await;
    let running = site.start().await;
    let channel = site.channel(None).await.expect("connected");
    let mut client = QueryClient::new(channel);
    for token in ["", "x", &site.enroll_token()] {
        let mut request = Request::new(AgentsRequest::default());
        bearer(&mut request, token);
        let refused = client.agents(request).await.expect_err("refused");
        assert_eq!(refused.code(), Code::Unauthenticated, "{token}");
    }
    let refused = client
        .agents(AgentsRequest::default())
        .await
        .expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut request = Request::new(AgentsRequest::default());
    bearer(&mut request, &site.admin_token());
    client.agents(request).await.expect("an answer");
    running.stop().await;
}
