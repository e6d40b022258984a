package testserver

import (
	"flag"
	"runtime"

	"go.uber.org/goleak"
)

// Main is a TestMain for a package whose parallel tests have servers of their own: they wait for answers, or for servers to
// notice things, most of the time, and so more of them run than there are processors. At the end no goroutine may be left.
func Main(m goleak.TestingM) {
	flag.Parse()
	if runtime.GOMAXPROCS(0) < 6 {
		_ = flag.Set("test.parallel", "6") // the flag exists
	}
	goleak.VerifyTestMain(m)
}
