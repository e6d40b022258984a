//go:build linux

package nfstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// childEnv, in the environment, makes this program the child: it holds childArgs as JSON.
const childEnv = "HOLDFAST_NFSTEST_CHILD"

// childArgs are what the child is started with.
type childArgs struct {
	Dir     string // holds the mount points
	Options Options
}

// fsName is the type of the mounts in /proc/self/mountinfo, their source is fsName, "-" and the child's process ID.
const fsName = "nfstest"

// control is what the test process can call in the child. Requests and answers are lines of JSON over two pipes.
type control struct {
	server *server
	dir    string
	all    faults

	mu sync.Mutex // guards the fields below

	mounts map[string]*mount
	ended  bool
}

// mount is one client at one directory.
type mount struct {
	dir    string
	client *client
	done   chan struct{} // closed when no call is under way any more
}

// MountArgs, FaultArgs, AdvanceArgs and ReleaseArgs are the arguments of calls to the child.
type (
	MountArgs struct {
		Dir     string
		Options ClientOptions
	}
	FaultArgs struct {
		Dir   string // "": all clients
		Fault Fault
	}
	AdvanceArgs struct {
		Dir string
		By  time.Duration
	}
	ReleaseArgs struct {
		Dir string
		Ops []Op
	}
	// None is the argument, or the answer, of calls that have none.
	None struct{}
)

// runChild serves the test process until that ends, then leaves nothing mounted.
func runChild(args childArgs) {
	// Its end is that of the test process, which is looked at; a signal to the whole group, or output that nobody reads, must
	// not end it before it has unmounted.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	log.SetPrefix("nfstest: ")
	c := &control{server: newServer(args.Options), dir: args.Dir, mounts: make(map[string]*mount)}
	in, out := os.NewFile(3, "requests"), os.NewFile(4, "answers")
	go func() {
		waitForEnd(os.Getppid())
		c.end()
	}()
	server := rpc.NewServer()
	if err := server.RegisterName("child", c); err != nil {
		log.Fatal(err)
	}
	server.ServeCodec(jsonrpc.NewServerCodec(pipes{in, out, c.end}))
	select {} // until end
}

// pipes are a connection of two pipes.
type pipes struct {
	io.Reader
	io.WriteCloser
	broken func() // called when nothing more can be read; may be nil
}

func (p pipes) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if err != nil && p.broken != nil {
		go p.broken()
	}
	return n, err
}

// waitForEnd returns when the parent has ended, or is about to: one that is killed while it waits for a file system of ours
// ends only when that answers.
func waitForEnd(parent int) {
	for ; os.Getppid() == parent; time.Sleep(50 * time.Millisecond) {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(parent) + "/status")
		if err != nil {
			return
		}
		for line := range bytes.Lines(b) {
			key, value, _ := bytes.Cut(line, []byte(":"))
			value = bytes.TrimSpace(value)
			switch string(key) {
			case "State":
				if value[0] == 'Z' || value[0] == 'X' {
					return
				}
			case "SigPnd", "ShdPnd":
				pending, err := strconv.ParseUint(string(value), 16, 64)
				if err == nil && pending&(1<<(syscall.SIGKILL-1)) != 0 {
					return
				}
			}
		}
	}
}

// end unmounts everything and ends the process.
func (c *control) end() {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.ended = true
	var failed error
	for _, m := range c.mounts {
		failed = errors.Join(failed, m.unmount())
	}
	_ = os.Remove(c.dir) // unless it is not empty
	if failed != nil {
		log.Print(failed)
		os.Exit(1)
	}
	os.Exit(0)
}

func (c *control) Mount(args MountArgs, _ *None) error {
	o := args.Options.withDefaults()
	if err := o.validate(); err != nil {
		return err
	}
	n := &network{server: c.server, all: &c.all, closed: make(chan struct{}), calls: make(map[Op]int)}
	if o.Soft {
		n.soft, n.softErr = o.Timeout, syscall.EIO
		if o.SoftErr {
			n.softErr = syscall.ETIMEDOUT
		}
	}
	server, err := c.mount(args.Dir, newClient(c.server, n, o))
	if err != nil {
		return err
	}
	return server.WaitMount() // which asks the server, and so may hang
}

func (c *control) mount(dir string, client *client) (*fuse.Server, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, errors.New("the child ends")
	}
	// Without default_permissions: tests run as root, who may do everything, and it has the kernel ask for the attributes of each
	// directory of a path.
	server, err := fuse.NewServer(newFuseFS(client), dir, &fuse.MountOptions{
		AllowOther:         true,
		FsName:             fsName + "-" + strconv.Itoa(os.Getpid()),
		Name:               fsName,
		MaxBackground:      1000, // RELEASE must not wait
		DirectMountStrict:  true,
		EnableLocks:        true,
		DisableXAttrs:      true,
		DisableReadDirPlus: true,
		DisableSplice:      true,
		Logger:             log.New(quiet{}, "", 0),
		PanicHandler: func(v any) fuse.Status {
			panic(v)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	m := &mount{dir, client, make(chan struct{})}
	c.mounts[dir] = m
	go func() {
		server.Serve()
		close(m.done)
	}()
	return server, nil
}

// quiet drops what go-fuse says of answers that nobody waits for after an unmount.
type quiet struct{}

func (quiet) Write(b []byte) (int, error) { return len(b), nil }

func (c *control) Unmount(dir string, _ *None) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.get(dir)
	if err != nil {
		return err
	}
	delete(c.mounts, dir)
	return m.unmount()
}

// unmount aborts all calls that wait for the file system, and takes it away from under open files.
func (m *mount) unmount() error {
	err := syscall.Unmount(m.dir, syscall.MNT_FORCE|syscall.MNT_DETACH)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	m.client.net.end()
	select {
	case <-m.done:
	case <-time.After(10 * time.Second):
		return fmt.Errorf("unmount %s: there are calls under way", m.dir)
	}
	return os.Remove(m.dir)
}

// get returns a mount. c.mu is held.
func (c *control) get(dir string) (*mount, error) {
	if m := c.mounts[dir]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("%s is not mounted", dir)
}

func (c *control) network(dir string) (*network, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.get(dir)
	if err != nil {
		return nil, err
	}
	return m.client.net, nil
}

func (c *control) Inject(args FaultArgs, _ *None) error {
	if err := args.Fault.validate(); err != nil {
		return err
	}
	if args.Dir == "" {
		c.all.add(args.Fault)
		return nil
	}
	n, err := c.network(args.Dir)
	if err == nil {
		n.own.add(args.Fault)
	}
	return err
}

func (c *control) Clear(dir string, _ *None) error {
	if dir == "" {
		c.all.clear()
		return nil
	}
	n, err := c.network(dir)
	if err == nil {
		n.own.clear()
	}
	return err
}

func (c *control) Release(args ReleaseArgs, _ *None) error {
	n, err := c.network(args.Dir)
	if err == nil {
		n.release(args.Ops)
	}
	return err
}

func (c *control) Held(dir string, held *int) error {
	n, err := c.network(dir)
	if err == nil {
		*held = n.countHeld()
	}
	return err
}

func (c *control) Calls(dir string, calls *map[Op]int) error {
	n, err := c.network(dir)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	*calls = n.calls
	n.calls = make(map[Op]int)
	return nil
}

func (c *control) Advance(args AdvanceArgs, _ *None) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.get(args.Dir)
	if err != nil {
		return err
	}
	m.client.mu.Lock()
	defer m.client.mu.Unlock()
	m.client.advanced += args.By
	return nil
}

func (c *control) Crash(None, *None) error {
	c.server.crash()
	return nil
}

func (c *control) Recover(None, *None) error {
	c.server.recover()
	return nil
}
