package pool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/durable"
)

// Pool is the machines of one host that wait for a claim. Methods are safe for
// concurrent use, and none holds the lock over anything that takes time.
type Pool struct {
	opts  Options
	caps  hypervisor.Capabilities
	since time.Time
	lock  *os.File

	// ctx ends with the pool, and with it everything in the background.
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
	// wake has the keeper look at once.
	wake chan struct{}
	// claiming is held by each claim that makes a machine.
	claiming chan struct{}

	mu          sync.Mutex
	templates   map[string]*stock
	entries     map[string]*entry
	checkpoints map[string]*checkpoint
	// removing are checkpoints, by id, whose files are on their way out.
	removing  map[string]bool
	admission admission
	// unfit are claims that no template fits.
	unfit struct {
		count uint64
		last  string // what it was for, in words
	}
	making   int
	draining bool
	closed   bool
	changed  chan struct{} // closed and replaced when something became ready
}

// stock is a template and what there is of it. It is guarded by Pool.mu.
type stock struct {
	Template
	// hot are parked, the longest first.
	hot []*entry
	// making counts the machines on their way into hot, saving is true while the
	// checkpoint is made.
	making int
	saving bool
	cold   *checkpoint
	// refused is why a checkpoint of the template was not used, until another is
	// made.
	refused error
	// refilling is true from below the low watermark until the high one.
	refilling bool
	// warm is how many are wanted beyond the watermarks, by a Warm under way.
	warm      int
	lastClaim time.Time
	retry     backoff // of machines
	resave    backoff // of the checkpoint
	counts    counts
	readied   []time.Time // within the last refillWindow
}

// Open opens the pool and takes up what a former daemon has left: see Recovery
// in the package's documentation. ctx bounds the opening, and carries the
// logger of everything that happens later.
func Open(ctx context.Context, opts Options) (_ *Pool, err error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	caps, err := opts.Backend.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{
		filepath.Join(opts.Root, templatesDir), filepath.Join(opts.Root, checkpointsDir), filepath.Join(opts.State, entriesDir),
	} {
		// Memory of guests is in there.
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("pool: %w", err)
		}
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	p := &Pool{
		opts: opts, caps: caps, since: time.Now(), ctx: background, stop: stop,
		wake: make(chan struct{}, 1), claiming: make(chan struct{}, opts.Concurrency), changed: make(chan struct{}),
		templates: map[string]*stock{}, entries: map[string]*entry{}, checkpoints: map[string]*checkpoint{}, removing: map[string]bool{},
		admission: admission{read: opts.Memory, reserve: opts.Reserve},
	}
	if p.lock, err = lock(ctx, filepath.Join(opts.State, lockName)); err != nil {
		stop()
		return nil, fmt.Errorf("pool: %w", err)
	}
	if err := p.recover(ctx); err != nil {
		return nil, errors.Join(err, p.Close(ctx))
	}
	p.work.Go(p.keep)
	return p, nil
}

// Close ends what is under way and lets go of the machines: they stay as they
// are, for the next Open. Machines that are being made are destroyed.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	ended := make(chan struct{})
	go func() { p.work.Wait(); close(ended) }()
	select {
	case <-ended:
		return p.lock.Close()
	case <-ctx.Done():
		return fmt.Errorf("close the pool: %w", context.Cause(ctx))
	}
}

func (p *Pool) step(name string) {
	if p.opts.Step != nil {
		p.opts.Step(name)
	}
}

// poke has the keeper look at once.
func (p *Pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// announce tells those who wait that something is ready or has failed. The
// caller holds mu.
func (p *Pool) announce() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// newID is a machine's id that begins with what it is made from.
func (p *Pool) newID(prefix string) string {
	suffix := make([]byte, 6)
	rand.Read(suffix)
	return prefix + "." + hex.EncodeToString(suffix)
}

func errNoTemplate(name string) error {
	return fmt.Errorf("template %q: %w", name, errdefs.ErrNotFound)
}

// AddTemplate stores t, with the digests of the image that is in its directory
// now, and returns it as stored. A template of the same name is replaced; its
// machines and its checkpoint go if they are no longer what t says.
func (p *Pool) AddTemplate(ctx context.Context, t Template) (Template, error) {
	if err := p.identify(&t); err != nil {
		return Template{}, err
	}
	if err := t.Validate(p.caps); err != nil {
		return Template{}, err
	}
	if err := p.canSave(t); err != nil {
		return Template{}, err
	}
	if err := durable.WriteJSON(p.templatePath(t.Name), t); err != nil {
		return Template{}, fmt.Errorf("store template %s: %w", t.Name, err)
	}
	p.step("template: stored")
	stale := p.setTemplate(t)
	p.poke()
	return t, p.releaseAll(ctx, stale)
}

// setTemplate makes t the one of its name, and returns the machines that are no
// longer of any use.
func (p *Pool) setTemplate(t Template) (stale []*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.templates[t.Name]
	if s == nil {
		s = &stock{lastClaim: time.Now()}
		p.templates[t.Name] = s
	} else if !sameMachines(s.Template, t) {
		stale = p.takeHot(s, len(s.hot))
		s.cold = nil
		s.retry, s.resave = backoff{}, backoff{}
	}
	s.Template = t
	if !t.Cold {
		s.cold = nil
	}
	return stale
}

// identify sets the template's digests from the image, after reading all of it
// once.
func (p *Pool) identify(t *Template) error {
	if !filepath.IsAbs(t.GuestDir) {
		return fmt.Errorf("template %s: guest directory %q: want an absolute path: %w", t.Name, t.GuestDir, errdefs.ErrInvalidArgument)
	}
	image, err := openImage(t.GuestDir)
	if err != nil {
		return fmt.Errorf("template %s: %w", t.Name, err)
	}
	if err := image.Verify(); err != nil {
		return fmt.Errorf("template %s: %w", t.Name, err)
	}
	t.Kernel, t.Initrd = image.Manifest.Kernel.SHA256, image.Manifest.Initrd.SHA256
	return nil
}

func (p *Pool) templatePath(name string) string {
	return filepath.Join(p.opts.Root, templatesDir, name+jsonSuffix)
}

// RemoveTemplate forgets a template, and destroys what waits of it.
func (p *Pool) RemoveTemplate(ctx context.Context, name string) error {
	p.mu.Lock()
	s := p.templates[name]
	if s == nil {
		p.mu.Unlock()
		return errNoTemplate(name)
	}
	delete(p.templates, name)
	stale := p.takeHot(s, len(s.hot))
	p.mu.Unlock()

	if err := os.Remove(p.templatePath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove template %s: %w", name, err)
	}
	p.step("template: removed")
	err := p.releaseAll(ctx, stale)
	return errors.Join(err, p.removeCheckpoints())
}

// Templates are those that there are, by name.
func (p *Pool) Templates() []Template {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []Template
	for _, s := range p.templates {
		list = append(list, s.Template)
	}
	slices.SortFunc(list, func(a, b Template) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// takeHot takes the n longest parked machines out of the hot tier, to be
// released. The caller holds mu.
func (p *Pool) takeHot(s *stock, n int) []*entry {
	n = min(n, len(s.hot))
	taken := slices.Clone(s.hot[:n])
	s.hot = slices.Delete(s.hot, 0, n)
	for _, e := range taken {
		e.State = stateDoomed
	}
	return taken
}

// releaseAll releases entries that are doomed, side by side. What fails is tried
// again by GC.
func (p *Pool) releaseAll(ctx context.Context, doomed []*entry) error {
	errs := make([]error, len(doomed))
	var wg sync.WaitGroup
	for i, e := range doomed {
		wg.Go(func() { errs[i] = p.discard(ctx, e) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// discard releases an entry that nobody else can get hold of any more.
func (p *Pool) discard(ctx context.Context, e *entry) error {
	p.mu.Lock()
	busy := e.releasing
	e.releasing = true
	p.mu.Unlock()
	if busy {
		return nil
	}
	defer func() {
		p.mu.Lock()
		e.releasing = false
		p.mu.Unlock()
	}()
	if err := p.release(ctx, e); err != nil {
		log.G(p.ctx).WithError(err).WithField("entry", e.ID).Warn("an entry could not be released, and is kept to be tried again")
		return err
	}
	p.mu.Lock()
	delete(p.entries, e.ID)
	p.mu.Unlock()
	p.poke()
	return nil
}
