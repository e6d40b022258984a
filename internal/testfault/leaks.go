package testfault

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// leaks knows what there was before a store was opened.
type leaks struct {
	t           testing.TB
	addr        string
	goroutines  goleak.Option
	connections int
}

// held is what a store holds.
type held struct{ goroutines, connections int }

func watchLeaks(t testing.TB, addr string) *leaks {
	return &leaks{t: t, addr: addr, goroutines: goleak.IgnoreCurrent(), connections: connections(t, addr)}
}

// now returns how many goroutines there are, and connections to the address.
func (k *leaks) now() held {
	return held{runtime.NumGoroutine(), connections(k.t, k.addr)}
}

// wantNoMore waits until there are no more than before, but for a few, as pools of connections grow on demand.
func (k *leaks) wantNoMore(before held, few int) {
	k.t.Helper()
	var after held
	ok := poll(func() bool {
		after = k.now()
		return after.goroutines <= before.goroutines+2*few && after.connections <= before.connections+few
	})
	if !ok {
		k.t.Errorf("after the fault there are %d goroutines and %d connections, before it there were %d and %d",
			after.goroutines, after.connections, before.goroutines, before.connections)
	}
}

// wantNone waits until nothing is left of the store.
func (k *leaks) wantNone() {
	k.t.Helper()
	// A restarted server has another goroutine that waits for it to end.
	waits := goleak.IgnoreAnyFunction("github.com/holdfast-sessions/holdfast/internal/testserver.startProcess.func1")
	if err := goleak.Find(k.goroutines, waits); err != nil {
		k.t.Errorf("after Close: %v", err)
	}
	var after int
	if !poll(func() bool { after = connections(k.t, k.addr); return after <= k.connections }) {
		k.t.Errorf("after Close there are %d connections to the server, before Open there were %d", after, k.connections)
	}
}

// pollTimeout is how long what a store holds may take to be given back.
var pollTimeout = 15 * time.Second

// poll waits until ok, not for ever.
func poll(ok func() bool) bool {
	for deadline := time.Now().Add(pollTimeout); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// connections returns how many connections to an address of 127.0.0.1 the system has that were not closed by who made
// them; 0 where that is not known. The format is that of proc(5): sl local_address rem_address st.
func connections(t testing.TB, addr string) (n int) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/net/tcp")
	if err != nil {
		return 0
	}
	defer f.Close()
	remote := fmt.Sprintf("0100007F:%04X", number)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		const established, closeWait = "01", "08"
		fields := strings.Fields(lines.Text())
		if len(fields) > 3 && fields[2] == remote && (fields[3] == established || fields[3] == closeWait) {
			n++
		}
	}
	return n
}
