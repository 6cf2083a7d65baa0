package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// fakeAgent answers on the link as the agent does, runs nothing, and can be
// made to misbehave.
type fakeAgent struct {
	t *testing.T
	// protocol is what Hello answers with.
	protocol uint32

	server    *ttrpc.Server
	listeners map[uint32]net.Listener
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu sync.Mutex
	// hooks run before a method's own answer, by name: "task.Start". An error
	// is the answer.
	hooks          map[string]func(ctx context.Context) error
	bundles        map[string]bool
	volumes        map[string]bool
	volumesMounted int
	clockAhead     time.Duration
	configs        map[string][]byte // of bundles, by id
	pod            *agentv1.ConfigurePodRequest
	tasks          map[string]bool // "container/exec"
	streams        map[string]*net.TCPConn
	control        []net.Conn
	frozen         bool
	limits         string     // of the last Update
	stats          *anypb.Any // the answer to Stats
	podStats       *anypb.Any // and to that for the pod
	sent           []*agentv1.Envelope
	more           chan struct{}
}

func newFakeAgent(t *testing.T) *fakeAgent {
	a := &fakeAgent{
		t: t, protocol: agentproto.Version, listeners: map[uint32]net.Listener{},
		hooks: map[string]func(context.Context) error{}, bundles: map[string]bool{}, volumes: map[string]bool{}, configs: map[string][]byte{},
		tasks: map[string]bool{}, streams: map[string]*net.TCPConn{}, more: make(chan struct{}),
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

func (a *fakeAgent) serve() {
	server, err := ttrpc.NewServer()
	if err != nil {
		panic(err)
	}
	a.server = server
	taskapi.RegisterTTRPCTaskService(server, fakeTask{fakeAgent: a})
	agentv1.RegisterSystemService(server, fakeSystem{a})
	agentv1.RegisterThawService(server, fakeThaw{a})
	agentv1.RegisterBundleService(server, fakeBundle{a})
	agentv1.RegisterSharesService(server, fakeBundle{a})
	agentv1.RegisterEventsService(server, fakeEvents{a})
	agentv1.RegisterPodService(server, fakePod{a})
	agentv1.RegisterCheckpointsService(server, fakeCheckpoints{a})
	agentv1.RegisterVolumesService(server, fakeVolumes{a})
	agentv1.RegisterNetworkService(server, fakeNetwork{a})
	for _, port := range []uint32{agentproto.PortControl, agentproto.PortStdio, agentproto.PortNinep} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		a.listeners[port] = l
		if port == agentproto.PortControl {
			a.wg.Go(func() { _ = server.Serve(a.ctx, controlListener{l, a}) })
		} else {
			a.wg.Go(func() { a.accept(l) })
		}
	}
}

// controlListener keeps what it accepts, to be cut.
type controlListener struct {
	net.Listener
	agent *fakeAgent
}

func (l controlListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.agent.mu.Lock()
		l.agent.control = append(l.agent.control, conn)
		l.agent.mu.Unlock()
	}
	return conn, err
}

// cut closes the control connections.
func (a *fakeAgent) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.control {
		c.Close()
	}
}

// accept takes data streams.
func (a *fakeAgent) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		id, err := agentproto.ReadPreface(conn)
		if err != nil {
			conn.Close()
			continue
		}
		refuse := a.hook("stream "+id) != nil
		a.mu.Lock()
		if !refuse {
			a.streams[id] = conn.(*net.TCPConn)
		}
		a.mu.Unlock()
		if err := agentproto.AnswerPreface(conn, !refuse); err != nil || refuse {
			conn.Close()
		}
	}
}

func (a *fakeAgent) dial(ctx context.Context, port uint32) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", a.listeners[port].Addr().String())
}

// stream is the guest's end of a data stream.
func (a *fakeAgent) stream(id string) *net.TCPConn {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.streams[id] == nil {
		a.t.Fatalf("stream %s has not been opened", id)
	}
	return a.streams[id]
}

// freeze makes every request that comes from now on, and every one that has
// not been answered, go unanswered: the machine is dead.
func (a *fakeAgent) freeze() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.frozen = true
}

// stop ends the fake's own goroutines.
func (a *fakeAgent) stop() {
	a.cancel()
	a.server.Close()
	for _, l := range a.listeners {
		l.Close()
	}
	a.mu.Lock()
	for _, c := range a.streams {
		c.Close()
	}
	a.mu.Unlock()
	a.wg.Wait()
}

// on installs a hook.
func (a *fakeAgent) on(method string, f func(ctx context.Context) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hooks[method] = f
}

func (a *fakeAgent) hook(method string) error {
	a.mu.Lock()
	f := a.hooks[method]
	a.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(a.ctx)
}

// answer is what every method does first and last.
func (a *fakeAgent) answer(method string, f func() error) error {
	err := a.hook(method)
	if err == nil {
		err = f()
	}
	a.mu.Lock()
	frozen := a.frozen
	a.mu.Unlock()
	if frozen {
		<-a.ctx.Done()
	}
	return errgrpc.ToGRPC(err)
}

// silence is a hook that never answers.
func silence(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// refusal is a hook that answers with an error.
func refusal(kind error) func(context.Context) error {
	return func(context.Context) error { return fmt.Errorf("refused by the test: %w", kind) }
}

func (a *fakeAgent) emit(e events.Event) {
	any, err := typeurl.MarshalAnyToProto(e)
	if err != nil {
		panic(err)
	}
	a.emitRaw(func(seq uint64) *agentv1.Envelope { return &agentv1.Envelope{Sequence: seq, Event: any} })
}

func (a *fakeAgent) emitRaw(f func(seq uint64) *agentv1.Envelope) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent = append(a.sent, f(uint64(len(a.sent)+1)))
	close(a.more)
	a.more = make(chan struct{})
}

// exit ends a process in the guest. Its streams end with it.
func (a *fakeAgent) exit(id, execID string, status uint32) {
	a.endStreams(id, execID)
	a.emitExit(id, execID, status)
}

func (a *fakeAgent) endStreams(id, execID string) {
	prefix := (&Container{guestID: id}).streamPrefix(execID)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range []string{"stdout", "stderr"} {
		if c := a.streams[prefix+"/"+name]; c != nil {
			c.Close()
		}
	}
}

func (a *fakeAgent) emitExit(id, execID string, status uint32) {
	e := &apievents.TaskExit{ContainerID: id, ID: execID, Pid: 7, ExitStatus: status, ExitedAt: timestamppb.Now()}
	if execID == "" {
		e.ID = id
	}
	a.emit(e)
}

func (a *fakeAgent) hasBundle(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundles[id]
}

func (a *fakeAgent) hasTask(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tasks[id+"/"]
}

func (a *fakeAgent) addTask(key string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tasks[key] {
		return errdefs.ErrAlreadyExists
	}
	a.tasks[key] = true
	return nil
}

func (a *fakeAgent) removeTask(key string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.tasks[key] {
		return errdefs.ErrNotFound
	}
	delete(a.tasks, key)
	return nil
}

type fakeTask struct {
	*fakeAgent
	taskapi.TTRPCTaskService // what no test calls
}

func (f fakeTask) Create(_ context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	return &taskapi.CreateTaskResponse{Pid: 7}, f.answer("task.Create", func() error {
		f.emit(&apievents.TaskCreate{ContainerID: r.ID, Bundle: r.Bundle, Pid: 7})
		return f.addTask(r.ID + "/")
	})
}

func (f fakeTask) Start(_ context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	return &taskapi.StartResponse{Pid: 7}, f.answer("task.Start", func() error {
		if r.ExecID == "" {
			f.emit(&apievents.TaskStart{ContainerID: r.ID, Pid: 7})
		} else {
			f.emit(&apievents.TaskExecStarted{ContainerID: r.ID, ExecID: r.ExecID, Pid: 8})
		}
		return nil
	})
}

func (f fakeTask) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("task.Exec", func() error {
		f.emit(&apievents.TaskExecAdded{ContainerID: r.ID, ExecID: r.ExecID})
		return f.addTask(r.ID + "/" + r.ExecID)
	})
}

func (f fakeTask) Kill(_ context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("task.Kill", func() error { return nil })
}

func (f fakeTask) ResizePty(_ context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("task.ResizePty", func() error { return nil })
}

func (f fakeTask) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	return &taskapi.PidsResponse{}, f.answer("task.Pids", func() error { return nil })
}

func (f fakeTask) Pause(_ context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("task.Pause", func() error {
		f.emit(&apievents.TaskPaused{ContainerID: r.ID})
		return nil
	})
}

func (f fakeTask) Resume(_ context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("task.Resume", func() error {
		f.emit(&apievents.TaskResumed{ContainerID: r.ID})
		return nil
	})
}

// Update keeps what it was asked for.
func (f fakeTask) Update(_ context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("task.Update", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.limits = string(r.Resources.GetValue())
		return nil
	})
}

func (f fakeTask) Stats(context.Context, *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	f.mu.Lock()
	stats := f.stats
	f.mu.Unlock()
	return &taskapi.StatsResponse{Stats: stats}, f.answer("task.Stats", func() error { return nil })
}

func (f fakeTask) Delete(_ context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	return &taskapi.DeleteResponse{ExitStatus: 99, ExitedAt: timestamppb.New(time.Unix(99, 0))}, f.answer("task.Delete", func() error {
		return f.removeTask(r.ID + "/" + r.ExecID)
	})
}

func (f fakeTask) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	return &taskapi.StateResponse{ID: r.ID, Pid: 7}, f.answer("task.State", func() error { return nil })
}

type fakeSystem struct{ *fakeAgent }

func (f fakeSystem) Hello(_ context.Context, r *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{Nonce: r.Nonce, ProtocolVersion: f.protocol}, f.answer("system.Hello", func() error { return nil })
}

type fakeThaw struct{ *fakeAgent }

func (f fakeThaw) Thaw(_ context.Context, r *agentv1.ThawRequest) (*agentv1.ThawResponse, error) {
	resp := &agentv1.ThawResponse{Nonce: r.Nonce, Clock: r.Now, BootId: "boot", MachineId: r.MachineId, Hostname: r.Hostname}
	return resp, f.answer("thaw.Thaw", func() error { return nil })
}

func (f fakeThaw) Clock(_ context.Context, r *agentv1.ClockRequest) (*agentv1.ClockResponse, error) {
	resp := new(agentv1.ClockResponse)
	return resp, f.answer("thaw.Clock", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.clockAhead += r.Step.AsDuration()
		resp.Clock = timestamppb.New(time.Now().Add(f.clockAhead))
		return nil
	})
}

// PowerOff leaves the machine running: the host has to end it.
func (f fakeSystem) PowerOff(context.Context, *agentv1.PowerOffRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("system.PowerOff", func() error { return errdefs.ErrUnavailable })
}

type fakeVolumes struct{ *fakeAgent }

func (f fakeVolumes) Mount(_ context.Context, r *agentv1.MountVolumeRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("volumes.Mount", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.volumes[r.Name] {
			return errdefs.ErrAlreadyExists
		}
		f.volumes[r.Name] = true
		f.volumesMounted++
		return nil
	})
}

func (f fakeVolumes) Unmount(_ context.Context, r *agentv1.UnmountVolumeRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("volumes.Unmount", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.volumes, r.Name)
		return nil
	})
}

type fakeBundle struct{ *fakeAgent }

func (f fakeBundle) Create(_ context.Context, r *agentv1.CreateBundleRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("bundle.Create", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.bundles[r.Id] = true
		f.configs[r.Id] = r.Config
		return nil
	})
}

func (f fakeBundle) Delete(_ context.Context, r *agentv1.DeleteBundleRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("bundle.Delete", func() error {
		if f.hasTask(r.Id) {
			return errdefs.ErrFailedPrecondition
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.bundles, r.Id)
		return nil
	})
}

func (f fakeBundle) WriteBack(_ context.Context, r *agentv1.WriteBackRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("shares.WriteBack", func() error {
		if !f.hasBundle(r.Id) {
			return errdefs.ErrNotFound
		}
		return nil
	})
}

type fakePod struct{ *fakeAgent }

func (f fakePod) Configure(_ context.Context, r *agentv1.ConfigurePodRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("pod.Configure", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pod = r
		return nil
	})
}

func (f fakePod) Metrics(context.Context, *agentv1.PodMetricsRequest) (*agentv1.PodMetricsResponse, error) {
	f.mu.Lock()
	stats := f.podStats
	f.mu.Unlock()
	return &agentv1.PodMetricsResponse{Metrics: stats}, f.answer("pod.Metrics", func() error { return nil })
}

type fakeNetwork struct{ *fakeAgent }

func (f fakeNetwork) Configure(context.Context, *agentv1.ConfigureNetworkRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("network.Configure", func() error { return nil })
}

type fakeCheckpoints struct{ *fakeAgent }

func (f fakeCheckpoints) Prepare(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("checkpoints.Prepare", func() error { return nil })
}

func (f fakeCheckpoints) Suspend(context.Context, *agentv1.SuspendRequest) (*agentv1.SuspendResponse, error) {
	return &agentv1.SuspendResponse{}, f.answer("checkpoints.Suspend", func() error { return nil })
}

func (f fakeCheckpoints) Attach(context.Context, *agentv1.AttachRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("checkpoints.Attach", func() error { return nil })
}

func (f fakeCheckpoints) Resume(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.answer("checkpoints.Resume", func() error { return nil })
}

type fakeEvents struct{ *fakeAgent }

func (f fakeEvents) Subscribe(ctx context.Context, r *agentv1.SubscribeRequest, s agentv1.Events_SubscribeServer) error {
	for next := r.After; ; {
		f.mu.Lock()
		pending, more := f.sent[min(next, uint64(len(f.sent))):], f.more
		if f.frozen {
			pending = nil
		}
		f.mu.Unlock()
		for _, e := range pending {
			if err := s.Send(e); err != nil {
				return err
			}
			next++
		}
		// After the event that comes with it, so that the loop sees it.
		if err := f.hook("events.Subscribe"); err != nil {
			return err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
}

func processSpec() typeurl.Any {
	data, err := json.Marshal(specs.Process{Args: []string{"true"}, Cwd: "/"})
	if err != nil {
		panic(err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}
}

// describe renders an event for comparison.
func describe(e events.Event) string {
	switch e := e.(type) {
	case *apievents.TaskCreate:
		return "create " + e.ContainerID
	case *apievents.TaskStart:
		return "start " + e.ContainerID
	case *apievents.TaskExecAdded:
		return "exec added " + e.ContainerID + "/" + e.ExecID
	case *apievents.TaskExecStarted:
		return "exec started " + e.ContainerID + "/" + e.ExecID
	case *apievents.TaskExit:
		if e.ID == e.ContainerID {
			return fmt.Sprintf("exit %s %d", e.ContainerID, e.ExitStatus)
		}
		return fmt.Sprintf("exit %s/%s %d", e.ContainerID, e.ID, e.ExitStatus)
	case *apievents.TaskDelete:
		return fmt.Sprintf("delete %s %d", e.ContainerID, e.ExitStatus)
	case *apievents.TaskOOM:
		return "oom " + e.ContainerID
	case *apievents.TaskPaused:
		return "paused " + e.ContainerID
	case *apievents.TaskResumed:
		return "resumed " + e.ContainerID
	}
	return fmt.Sprintf("%T", e)
}
