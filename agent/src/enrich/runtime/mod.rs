//! What container runtimes and the cloud say: names, images, labels, tags. Facts that arrive late.
//!
//! Asked on a thread of its own, which the pipeline never waits for: questions go into a bounded queue, answers come
//! out of one. Each source is found by itself and is optional. One that hangs costs its own
//! questions their time limit and is then left alone for a while, longer each time; one that lies can say what it likes of
//! the containers that the host's runtimes made, and of nobody else's ([`super::workload`]).

pub mod cloud;
pub mod cri;
pub mod docker;
pub mod http;
pub mod kept;
pub mod kubelet;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sumun_abi::record::{FLAW_LOST, FLAW_TRUNCATED};
use sumun_proto::text;
use sumun_proto::v1::Facts;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};

use self::cri::Cri;
use self::kubelet::Kubelet;
use super::workload::AWAY_AFTER;

/// Questions that wait. Full: the question waits where it comes from, and its workload is pending; it is counted.
const QUESTIONS: usize = 4096;
/// Answers that wait. Full: the asking thread waits.
const ANSWERS: usize = 1024;
/// Containers that are asked about at once.
const AT_ONCE: usize = 16;
/// Pods that wait for the kubelet at once. Beyond, a pod waits for its next try, and is counted.
const PODS_AT_ONCE: usize = 256;
/// When a pod is asked about again that the kubelet does not know, or could not be asked about; longer each time.
const POD_AGAIN: Duration = Duration::from_secs(1);
/// So often it is asked in one go; then its question waits where it came from ([`Learned::again`]).
const POD_TRIES: u32 = 5;
/// So many answers that it does not know the pod are believed: the runtime may be faster than the kubelet's own list.
const POD_UNKNOWN_TRIES: u32 = 3;
/// Pods for which is waited so at all. Beyond, the question goes back to where it came from, and is counted.
const PODS_WAITING: usize = 4096;
/// How long the kubelet may take, with those that wait before.
const PODS_PATIENCE: Duration = Duration::from_secs(10);
/// How long a source may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take to say that there is no such container, after it failed to answer of another one.
const TRIAL: Duration = Duration::from_secs(1);
/// Why there was no answer.
const LATE: &str = "it does not answer in time";
/// When a container is asked about again that nobody knew: runtimes know some only a moment after their cgroup.
/// In the first half second often: of a pod's own container it is a moment when RunPodSandbox returns, and the pod's first
/// container begins soon after.
const AGAIN: [Duration; 15] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(30),
    Duration::from_millis(50),
    Duration::from_millis(50),
    Duration::from_millis(50),
    Duration::from_millis(50),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// How long a source that failed is left alone at first …
const REST: Duration = Duration::from_secs(1);
/// … and at most.
const REST_MAX: Duration = Duration::from_secs(60);
/// How often it is looked which sources there are.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same while there is none: the containers of one that has just begun are not to be taken for nobody's.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Bytes of all labels of a container or pod; what is more is cut, which is said (`container.labels_flaws`).
pub const LABELS_MAX: usize = 64 * 1024;
/// Images of a source of which the digest is kept.
const DIGESTS_MAX: usize = 256;
/// Bytes of a name that is not a label.
const NAME_MAX: usize = 1024;

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Sockets of the Container Runtime Interface.
    pub cri: Vec<PathBuf>,
    /// Sockets of Docker's API.
    pub docker: Vec<PathBuf>,
    /// Sockets of podman's API.
    pub podman: Vec<PathBuf>,
    /// Stores of containers/storage.
    pub stores: Vec<PathBuf>,
    /// Metadata services of clouds are asked.
    pub cloud: Option<cloud::Settings>,
    /// The kubelet is asked.
    pub kubelet: Option<kubelet::Settings>,
}

impl Default for Settings {
    fn default() -> Self {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Self {
            cri: paths(&[
                "/run/containerd/containerd.sock",
                "/run/k3s/containerd/containerd.sock",
                "/run/k0s/containerd.sock",
                "/var/snap/microk8s/common/run/containerd.sock",
                "/run/crio/crio.sock",
            ]),
            docker: paths(&["/run/docker.sock"]),
            podman: paths(&["/run/podman/podman.sock"]),
            stores: paths(&["/var/lib/containers/storage"]),
            cloud: Some(cloud::Settings::default()),
            kubelet: None,
        }
    }
}

impl Settings {
    /// Whether there is a runtime that may be asked.
    fn present(&self) -> bool {
        let sockets = [&self.cri, &self.docker, &self.podman];
        sockets.into_iter().flatten().any(|socket| socket.exists())
            || self.stores.iter().any(|store| is_store(store))
    }
}

/// A container to ask about.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its workload.
    pub workload: u64,
    /// Its id.
    pub container: String,
    /// The runtime, if its path tells.
    pub runtime: String,
    /// When its cgroup was made, ns since boot; 0 = that was not seen.
    pub made_ns: u64,
    /// Since when it waits for somebody to ask, ns since boot; 0 = nobody has looked yet.
    pub waits_ns: u64,
    /// How often it came back because somebody who may know could not be asked.
    pub tries: u32,
    /// What its runtime has told already: only the kubelet is still to be asked.
    pub named: Option<Box<Facts>>,
}

/// What became of a question; of none, the facts of the host (workload 0).
#[derive(Debug)]
pub struct Learned {
    /// The workload.
    pub workload: u64,
    /// As in its question.
    pub made_ns: u64,
    /// What was said; `None`: nobody knows it.
    pub facts: Option<Facts>,
    /// Nothing was said, since somebody who may know could not be asked: the question, to be asked again.
    pub again: Option<Question>,
    /// A runtime that would know it said that it does not.
    pub denied: bool,
}

/// Counters and states, for status and metrics.
#[derive(Debug, Default)]
pub struct Told {
    /// There is a source that may be asked.
    pub present: AtomicBool,
    /// Questions that were not asked because too many waited.
    pub dropped: AtomicU64,
    /// Containers that a runtime told of.
    pub known: AtomicU64,
    /// Containers that no runtime knew.
    pub unknown: AtomicU64,
    /// Questions to a source that failed.
    pub failed: AtomicU64,
    /// Those of them that it could not answer of one container, while it answers of others.
    pub refused: AtomicU64,
    /// Who does not answer now, and why: by socket, `kubelet` or `cloud`.
    troubles: std::sync::Mutex<BTreeMap<String, String>>,
}

impl Told {
    /// Who does not answer now, and why.
    #[must_use]
    pub fn troubles(&self) -> BTreeMap<String, String> {
        let troubles = self.troubles.lock();
        troubles.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says why somebody does not answer, or that it does.
    fn trouble(&self, who: &str, why: Option<String>) {
        let troubles = self.troubles.lock();
        let mut troubles = troubles.unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => troubles.insert(who.into(), why),
            None => troubles.remove(who),
        };
    }
}

/// The asking thread, seen from the pipeline.
#[derive(Debug)]
pub struct Runtimes {
    settings: Settings,
    looked: Instant,
    questions: mpsc::Sender<Question>,
    learned: mpsc::Receiver<Learned>,
    told: Arc<Told>,
}

impl Runtimes {
    /// Starts the thread. It ends when this is dropped.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (answers, learned) = mpsc::channel(ANSWERS);
        let told = Arc::new(Told::default());
        // The first containers are asked about at once.
        told.present.store(settings.present(), Ordering::Relaxed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()?;
        thread::Builder::new().name("runtimes".into()).spawn({
            let (settings, told) = (settings.clone(), Arc::clone(&told));
            move || runtime.block_on(serve(settings, told, asked, answers))
        })?;
        Ok(Self {
            settings,
            looked: Instant::now(),
            questions,
            learned,
            told,
        })
    }

    /// Asks about a container.
    ///
    /// # Errors
    /// The question, if it is not asked now: there is nobody to ask, or too many wait.
    pub fn ask(&self, question: Question) -> Result<(), Question> {
        if !self.told.present.load(Ordering::Relaxed) {
            return Err(question);
        }
        self.questions.try_send(question).map_err(|error| {
            self.told.dropped.fetch_add(1, Ordering::Relaxed);
            error.into_inner()
        })
    }

    /// Whether there is a runtime that may be asked.
    pub fn present(&mut self) -> bool {
        if !self.told.present.load(Ordering::Relaxed) && self.looked.elapsed() >= LOOK_AGAIN {
            self.looked = Instant::now();
            let present = self.settings.present();
            self.told.present.store(present, Ordering::Relaxed);
        }
        self.told.present.load(Ordering::Relaxed)
    }

    /// How many questions there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.questions.capacity()
    }

    /// The next answer, if there is one.
    pub fn learned(&mut self) -> Option<Learned> {
        self.learned.try_recv().ok()
    }

    /// Counters.
    #[must_use]
    pub fn told(&self) -> &Arc<Told> {
        &self.told
    }
}

async fn serve(
    settings: Settings,
    told: Arc<Told>,
    mut questions: mpsc::Receiver<Question>,
    answers: mpsc::Sender<Learned>,
) {
    let sources = Arc::new(Sources::new(settings, told));
    let looking = Arc::clone(&sources);
    let looks = tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let present = looking.settings.present();
            looking.told.present.store(present, Ordering::Relaxed);
        }
    });
    let clouds = sources.settings.cloud.clone().map(|settings| {
        let answers = answers.clone();
        let told = Arc::clone(&sources.told);
        tokio::spawn(async move { cloud::serve(settings, &told, answers).await })
    });
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(question) = questions.recv().await {
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
            break;
        };
        let (sources, answers) = (Arc::clone(&sources), answers.clone());
        tokio::spawn(async move {
            let learned = |facts, again| Learned {
                workload: question.workload,
                made_ns: question.made_ns,
                facts,
                again,
                denied: false,
            };
            // Nobody listens any more only when the agent ends.
            let facts = match question.named.as_deref() {
                Some(named) => {
                    drop(turn);
                    named.clone()
                }
                None => {
                    // Others go on while a container that nobody knows yet is waited for.
                    let mut facts = match sources.patiently(&question, turn).await {
                        Answer::Known(facts) => Some(facts),
                        Answer::Denied => {
                            let denied = Learned {
                                denied: true,
                                ..learned(None, None)
                            };
                            let _ = answers.send(denied).await;
                            return;
                        }
                        Answer::Nobody => None,
                        // Its names stay unknown: nobody has said that there are none.
                        Answer::Unasked => {
                            let _ = answers.send(learned(None, Some(question.clone()))).await;
                            return;
                        }
                    };
                    let asks = sources.kubelet.is_some();
                    if let Some(facts) = &mut facts {
                        facts.pod_pending = asks && !facts.pod_uid.is_empty();
                    }
                    let of_pod = facts.clone().filter(|facts| facts.pod_pending);
                    let _ = answers.send(learned(facts, None)).await;
                    match of_pod {
                        Some(facts) => facts,
                        None => return,
                    }
                }
            };
            // What the runtime said is not held up by it.
            let answer = match sources.of_pod_patiently(&facts, &answers).await {
                Some(more) => learned(Some(more), None),
                None => {
                    let again = Question {
                        // Each of them waits as long as one that has just begun.
                        tries: question.named.as_ref().map_or(0, |_| question.tries),
                        named: Some(Box::new(facts)),
                        ..question.clone()
                    };
                    learned(None, Some(again))
                }
            };
            let _ = answers.send(answer).await;
        });
    }
    looks.abort();
    if let Some(clouds) = clouds {
        clouds.abort();
    }
}

/// All that may be asked of containers.
#[derive(Debug)]
struct Sources {
    begun: Instant,
    settings: Settings,
    told: Arc<Told>,
    cri: Vec<Source>,
    docker: Vec<Source>,
    kubelet: Option<(Source, Kubelet)>,
    pods: Semaphore,
    pods_waiting: Semaphore,
}

/// A runtime's socket.
#[derive(Debug)]
struct Source {
    socket: PathBuf,
    /// Who answers, as facts name it.
    name: &'static str,
    /// It was there once: a runtime that restarts may take it away meanwhile.
    seen: AtomicBool,
    /// The id of no container. By chance: nobody can make one of this name.
    nobody: String,
    rest: Mutex<Rest>,
    /// Digests of images by id and name, [`DIGESTS_MAX`] of them; when it is full it is begun anew.
    digests: Mutex<BTreeMap<(String, String), Option<String>>>,
}

/// When a source that failed is asked again.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    until: Option<Instant>,
    next: Duration,
    /// Since when nobody is behind its socket, or there is none.
    away: Option<Instant>,
}

impl Source {
    fn new(socket: &Path, name: &'static str) -> Self {
        Self {
            socket: socket.to_owned(),
            name,
            seen: AtomicBool::new(false),
            nobody: format!("{:064x}", RandomState::new().hash_one(socket)),
            rest: Mutex::default(),
            digests: Mutex::default(),
        }
    }

    /// With the digest of the image that Docker has named by its id. That it cannot be told holds up nothing else.
    async fn with_digest(&self, mut facts: Facts) -> Facts {
        if facts.image_id.is_empty() || facts.image_id.len() > NAME_MAX {
            return facts;
        }
        let key = (facts.image_id.clone(), facts.image.clone());
        let known = self.digests.lock().await.get(&key).cloned();
        let digest = match known {
            Some(digest) => digest,
            None => {
                let asked = docker::digest(&self.socket, &facts.image_id, &facts.image);
                let Ok(Ok(digest)) = tokio::time::timeout(TRIAL, asked).await else {
                    return facts;
                };
                let mut digests = self.digests.lock().await;
                if digests.len() >= DIGESTS_MAX {
                    digests.clear();
                }
                digests.insert(key, digest.clone());
                digest
            }
        };
        if let Some(digest) = digest {
            facts.image_digest = digest;
        }
        facts
    }

    /// Whether it can be asked now; if not, whether it may be again. Nobody waits for the word of a runtime that was never there, or
    /// behind whose socket nobody has been for [`AWAY_AFTER`].
    async fn is_there(&self) -> Result<(), bool> {
        if !self.socket.exists() {
            return Err(self.seen.load(Ordering::Relaxed) && !self.is_long_away().await);
        }
        self.seen.store(true, Ordering::Relaxed);
        if !self.is_resting().await {
            return Ok(());
        }
        let away = self.rest.lock().await.away;
        if away.is_none_or(|since| since.elapsed() < AWAY_AFTER) {
            return Err(true);
        }
        if self.refuses().await {
            return Err(false);
        }
        // Somebody is there again.
        *self.rest.lock().await = Rest::default();
        Ok(())
    }

    async fn is_resting(&self) -> bool {
        let rest = self.rest.lock().await;
        rest.until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether nobody listens at its socket, which may be left from one that was there.
    async fn refuses(&self) -> bool {
        let connected = tokio::net::UnixStream::connect(&self.socket).await;
        connected.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    /// Nobody is behind its socket: whether that is so for long.
    async fn is_long_away(&self) -> bool {
        let mut rest = self.rest.lock().await;
        let since = *rest.away.get_or_insert_with(Instant::now);
        since.elapsed() >= AWAY_AFTER
    }

    /// It could not be asked: whether it may know all the same.
    async fn may_know(&self) -> bool {
        if self.refuses().await {
            return !self.is_long_away().await;
        }
        self.rest.lock().await.away = None;
        true
    }

    /// One question of a container.
    async fn question(&self, id: &str, patience: Duration) -> Result<Option<Facts>, String> {
        let asked = async {
            if self.name == "cri" {
                // A connection for each: one that hangs is given up with its question.
                let client = Cri::new(&self.socket);
                return client.container(id).await.map_err(|e| e.to_string());
            }
            let answer = docker::container(&self.socket, self.name, id).await;
            answer.map_err(|error| error.to_string())
        };
        let answer = tokio::time::timeout(patience, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(LATE.into()))?;
        match answer {
            Some(facts) if self.name != "cri" => Ok(Some(self.with_digest(facts).await)),
            answer => Ok(answer),
        }
    }

    /// Asks of a container. Of what it cannot say of this one, whatever that is, nobody else has to suffer: only if it cannot say either
    /// that it does not know one that there is not, it is left alone for a while.
    async fn container(&self, told: &Told, id: &str) -> Said {
        let why = match self.question(id, PATIENCE).await {
            Ok(facts) => {
                self.answers(told).await;
                return facts.map_or(Said::Nothing, Said::This);
            }
            Err(why) => why,
        };
        told.failed.fetch_add(1, Ordering::Relaxed);
        if self.question(&self.nobody, TRIAL).await.is_ok() {
            self.answers(told).await;
            told.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(socket = %self.socket.display(), id, why, "a runtime cannot say what this container is");
            return Said::Refused;
        }
        self.rests(told, why).await;
        Said::Failed
    }

    /// It has answered.
    async fn answers(&self, told: &Told) {
        *self.rest.lock().await = Rest::default();
        told.trouble(&self.socket.display().to_string(), None);
    }

    /// It is left alone for a while.
    async fn rests(&self, told: &Told, why: String) {
        let mut rest = self.rest.lock().await;
        // Several questions may have failed together.
        if rest.until.is_none_or(|until| Instant::now() >= until) {
            rest.next = (rest.next * 2).clamp(REST, REST_MAX);
            rest.until = Some(Instant::now() + rest.next);
            tracing::warn!(
                socket = %self.socket.display(), why, seconds = rest.next.as_secs(),
                "a container runtime or the kubelet is not asked for a while"
            );
            told.trouble(&self.socket.display().to_string(), Some(why));
        }
    }
}

/// What came of asking a runtime of a container.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, and taken apart where it comes out"
)]
enum Said {
    This(Facts),
    /// It does not know it.
    Nothing,
    /// It answers, but not of this one.
    Refused,
    /// It does not answer.
    Failed,
}

/// Asks each runtime that there is once, all of them at the same time, of a container that there is not: who they are, and why one does not answer.
pub async fn try_runtimes(settings: &Settings) -> Vec<(String, Result<(), String>)> {
    let sources = Sources::new(settings.clone(), Arc::default());
    let all = sources.cri.iter().chain(&sources.docker);
    let there = all.filter(|source| source.socket.exists());
    let asked = there.map(|source| async move {
        let answer = source.question(&source.nobody, PATIENCE).await;
        (source.socket.display().to_string(), answer.map(|_| ()))
    });
    let mut tried = futures::future::join_all(asked).await;
    for store in &settings.stores {
        match docker::stored(store, "") {
            Ok(None) if !is_store(store) => {}
            answer => {
                let answer = answer.map(|_| ()).map_err(|error| error.to_string());
                tried.push((store.display().to_string(), answer));
            }
        }
    }
    tried
}

/// Whether podman or CRI-O have made containers there.
fn is_store(store: &Path) -> bool {
    let folders = ["overlay", "vfs", "btrfs"].map(|driver| format!("{driver}-containers"));
    folders.iter().any(|folder| store.join(folder).exists())
}

impl Sources {
    fn new(settings: Settings, told: Arc<Told>) -> Self {
        let of = |paths: &[PathBuf], name| {
            let sources = paths.iter().map(move |path| Source::new(path, name));
            sources.collect::<Vec<_>>()
        };
        let mut docker = of(&settings.docker, "docker");
        docker.extend(of(&settings.podman, "podman"));
        Self {
            begun: Instant::now(),
            cri: of(&settings.cri, "cri"),
            docker,
            kubelet: settings.kubelet.clone().map(|settings| {
                let source = Source::new(Path::new("kubelet"), "kubelet");
                (source, Kubelet::new(settings))
            }),
            pods: Semaphore::new(PODS_AT_ONCE),
            pods_waiting: Semaphore::new(PODS_WAITING),
            settings,
            told,
        }
    }

    /// Asks until somebody knows the container, or nobody will for now. Of one that could not be asked about before, once.
    async fn patiently(&self, question: &Question, turn: OwnedSemaphorePermit) -> Answer {
        let mut turn = Some(turn);
        let mut last = Answer::Nobody;
        let pauses = match question.tries {
            0 => &AGAIN[..],
            _ => &AGAIN[..1],
        };
        for pause in pauses {
            if !pause.is_zero() {
                turn.take();
                tokio::time::sleep(*pause).await;
            }
            last = self.ask(question).await;
            if let Answer::Known(_) = last {
                break;
            }
        }
        match last {
            Answer::Known(facts) => {
                self.told.known.fetch_add(1, Ordering::Relaxed);
                Answer::Known(bounded(facts))
            }
            Answer::Unasked => Answer::Unasked,
            nobody => {
                self.told.unknown.fetch_add(1, Ordering::Relaxed);
                nobody
            }
        }
    }

    /// What is known of a pod's container once the kubelet has answered. `None`: it could not be asked now.
    async fn of_pod_patiently(
        &self,
        facts: &Facts,
        answers: &mpsc::Sender<Learned>,
    ) -> Option<Facts> {
        let Ok(_place) = self.pods_waiting.try_acquire() else {
            self.told.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let facts = Facts {
            pod_pending: false,
            ..facts.clone()
        };
        let (mut pause, mut unknown) = (POD_AGAIN, 0);
        for _ in 0..POD_TRIES {
            match self.of_pod(&facts).await {
                Answer::Known(more) => return Some(more),
                Answer::Denied | Answer::Nobody => {
                    unknown += 1;
                    if unknown >= POD_UNKNOWN_TRIES {
                        return Some(facts);
                    }
                }
                Answer::Unasked => {}
            }
            if answers.is_closed() {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        None
    }

    /// What the kubelet adds to the facts of a pod's container.
    async fn of_pod(&self, facts: &Facts) -> Answer {
        let Some((source, kubelet)) = self.kubelet.as_ref() else {
            return Answer::Nobody;
        };
        if source.is_resting().await {
            return Answer::Unasked;
        }
        let Ok(_turn) = self.pods.try_acquire() else {
            self.told.dropped.fetch_add(1, Ordering::Relaxed);
            return Answer::Unasked;
        };
        let answer = tokio::time::timeout(PODS_PATIENCE, kubelet.add(facts)).await;
        let why = match answer {
            Ok(Ok(more)) => {
                source.answers(&self.told).await;
                return more.map_or(Answer::Nobody, |more| Answer::Known(bounded(more)));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => LATE.to_owned(),
        };
        self.told.failed.fetch_add(1, Ordering::Relaxed);
        source.rests(&self.told, why).await;
        Answer::Unasked
    }

    /// Whether a container is of a runtime of which there is nothing, and which may restart just as the agent did.
    fn is_about_to_begin(&self, runtime: &str) -> bool {
        let is_there = |source: &Source| source.socket.exists();
        let docker = |source: &&Source| source.name == runtime;
        let gone = match runtime {
            "containerd" | "cri-o" => !self.cri.is_empty() && !self.cri.iter().any(is_there),
            "docker" => {
                let mut all = self.docker.iter().filter(docker).peekable();
                all.peek().is_some() && !all.any(is_there)
            }
            _ => false,
        };
        gone && self.begun.elapsed() < AWAY_AFTER
    }

    async fn ask(&self, question: &Question) -> Answer {
        let id = question.container.as_str();
        let runtime = question.runtime.as_str();
        let may_be = |names: &[&str]| runtime.is_empty() || names.contains(&runtime);
        let mut unasked = self.is_about_to_begin(runtime);
        let mut denied = false;
        if may_be(&["containerd", "cri-o"]) {
            for source in &self.cri {
                if let Err(may_be_again) = source.is_there().await {
                    unasked |= may_be_again;
                    continue;
                }
                match source.container(&self.told, id).await {
                    Said::This(facts) => return Answer::Known(facts),
                    Said::Nothing => denied = true,
                    Said::Refused => unasked = true,
                    Said::Failed => unasked |= source.may_know().await,
                }
            }
        }
        for source in &self.docker {
            if !may_be(&[source.name]) {
                continue;
            }
            if let Err(may_be_again) = source.is_there().await {
                unasked |= may_be_again;
                continue;
            }
            match source.container(&self.told, id).await {
                Said::This(facts) => return Answer::Known(facts),
                Said::Nothing => denied = true,
                Said::Refused => unasked = true,
                Said::Failed => unasked |= source.may_know().await,
            }
        }
        if may_be(&["podman"]) {
            for store in &self.settings.stores {
                match docker::stored(store, id) {
                    Ok(None) => {}
                    Ok(Some(facts)) => return Answer::Known(facts),
                    Err(error) => {
                        unasked = true;
                        self.told.failed.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(store = %store.display(), %error, "podman's store cannot be read");
                    }
                }
            }
        }
        match (unasked, denied) {
            (true, _) => Answer::Unasked,
            (false, true) => Answer::Denied,
            (false, false) => Answer::Nobody,
        }
    }
}

/// What came of asking about a container.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, and taken apart where it comes out"
)]
enum Answer {
    Known(Facts),
    /// All that may know it were asked, and do not.
    Denied,
    /// There is nobody who may know it.
    Nobody,
    /// Some could not be asked: they may know it.
    Unasked,
}

/// Name with tag or digest, and the tag: `docker.io/library/nginx:1.25` has `1.25`.
fn reference(image: &str) -> (String, String) {
    let (name, _) = image.split_once('@').unwrap_or((image, ""));
    let last = name.rsplit('/').next().unwrap_or_default();
    let tag = last.split_once(':').map_or("", |(_, tag)| tag);
    // An image's own id has no tag.
    let tag = if image.starts_with("sha256:") {
        ""
    } else {
        tag
    };
    (image.to_owned(), tag.to_owned())
}

/// Labels as `KEY=VALUE`, sorted, and their flaws. Of too many or too long ones those that fit are told whole, and behind them
/// what there is room for of the first that does not: the last one of a list with a flaw is not known to rules.
fn labels<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    told: impl IntoIterator<Item = (K, V)>,
) -> (Vec<String>, u32) {
    let mut labels: Vec<String> = told
        .into_iter()
        .map(|(key, value)| text::from_bytes(&[key.as_ref(), b"=", value.as_ref()].concat()))
        .collect();
    labels.sort_unstable();
    let (mut room, mut cut) = (LABELS_MAX, None);
    labels.retain(|label| {
        let fits = label.len() <= room;
        if fits {
            room -= label.len();
        } else {
            cut.get_or_insert_with(|| label.clone());
        }
        fits
    });
    let Some(mut cut) = cut else {
        return (labels, 0);
    };
    shorten(&mut cut, room);
    labels.push(cut);
    (labels, u32::from(FLAW_TRUNCATED))
}

/// What is known of a container whose runtime knows it and cannot say what: names and labels are unknown.
fn untold(source: &str) -> Facts {
    Facts {
        source: source.into(),
        untold: true,
        container_labels_flaws: u32::from(FLAW_LOST),
        pod_labels_flaws: u32::from(FLAW_LOST),
        ..Facts::default()
    }
}

/// At most so many bytes of a text, to the end of a character.
fn shorten(text: &mut String, most: usize) {
    let most = most.min(text.len());
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
}

/// The same with names that are no longer than names are.
fn bounded(mut facts: Facts) -> Facts {
    let names = [
        &mut facts.source,
        &mut facts.container_name,
        &mut facts.image,
        &mut facts.image_tag,
        &mut facts.image_digest,
        &mut facts.image_id,
        &mut facts.ecs_cluster,
        &mut facts.ecs_task_arn,
        &mut facts.ecs_family,
        &mut facts.ecs_container,
        &mut facts.pod_name,
        &mut facts.pod_uid,
        &mut facts.namespace,
        &mut facts.owner_kind,
        &mut facts.owner_name,
        &mut facts.service_account,
        &mut facts.node,
    ];
    let mut cut = false;
    for name in names {
        if name.len() > NAME_MAX {
            shorten(name, NAME_MAX);
            cut = true;
        }
        *name = text::from_bytes(name.as_bytes());
    }
    facts.cut |= cut;
    facts
}

#[cfg(test)]
mod tests;
