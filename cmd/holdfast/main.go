// Command holdfast is the gateway, the demo and the tools of Holdfast. holdfast --help lists what it does.
//
// It exits with 0 if all went well, 1 if something failed, 2 if the command line cannot be used, and 3 if it was
// partly done. Errors are one line on standard error, which says how to fix them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/holdfast-sessions/holdfast/cmd/holdfast/demo"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/store"
)

// cli is the command line.
type cli struct {
	Demo    demoCmd    `cmd:"" help:"Show what Holdfast does: servers to kill, and a session that stays."`
	Gateway gatewayCmd `cmd:"" help:"Spread requests over application servers that keep sessions."`
	Config  configCmd  `cmd:"" help:"Work with the configuration file of a gateway."`
	Key     keyCmd     `cmd:"" help:"Make and change the keys of sealed sessions."`
	Store   storeCmd   `cmd:"" help:"Work with the store that keeps the sessions."`
	Cookie  cookieCmd  `cmd:"" help:"Work with sealed sessions, which are in their cookies."`
	Version versionCmd `cmd:"" help:"Print the version."`

	DemoApp     demoAppCmd     `cmd:"" hidden:""`
	DemoGateway demoGatewayCmd `cmd:"" hidden:""`
}

// errUsage marks errors of the command line that kong does not find.
var errUsage = errors.New("cannot be used")

func main() { os.Exit(run()) }

// run does what the command line says and returns the exit status.
func run() int {
	var c cli
	parser := kong.Must(&c,
		kong.Name("holdfast"),
		kong.Description("Holdfast keeps a user's session while requests move between servers and servers come and go."),
		kong.DefaultEnvars("HOLDFAST"),
		kong.Vars{"stores": "file:/dir, sqlite:/file, redis://, redis-sentinel://, redis-cluster://, memcached://, mysql://, postgres:// or memory:"},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
	k, err := parser.Parse(os.Args[1:])
	if err != nil {
		complain(fmt.Errorf("%w (see %s --help)", err, commandOf(err)))
		return 2
	}
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !strings.HasPrefix(k.Command(), "gateway run") { // which reads its configuration again
		ends = append(ends, syscall.SIGHUP)
	}
	// A second Ctrl-C ends the program at once, but not one that comes with the first: timeout(1) sends two. Nor does one
	// that comes when all is done, or a clean end would look like a kill: so nothing stops this at the end of run.
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	k.BindTo(ctx, (*context.Context)(nil))
	switch err := k.Run(); {
	case err == nil:
		return 0
	case errors.Is(err, errUsage), errors.Is(err, store.ErrURL), errors.Is(err, keyring.ErrURL), errors.Is(err, demo.ErrConfig):
		complain(fmt.Errorf("%w (see holdfast %s --help)", err, k.Command()))
		return 2
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		complain(errors.New("interrupted"))
		return 1
	case errors.Is(err, errPartly):
		complain(err)
		return 3
	default:
		complain(err)
		return 1
	}
}

// commandOf returns the command that kong was parsing when it found err.
func commandOf(err error) string {
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil && parse.Context.Selected() != nil {
		return parse.Context.Selected().FullPath()
	}
	return "holdfast"
}

// userinfo is the part of a URL where a user name and a password are.
var userinfo = regexp.MustCompile(`(?i)\b([a-z][a-z0-9+.-]*:/*)[^\s"']*@`)

// complain prints err as one line, without passwords that were given where none belongs.
func complain(err error) {
	fmt.Fprintln(os.Stderr, "holdfast: "+oneLine(err))
}

func oneLine(err error) string {
	line := userinfo.ReplaceAllString(err.Error(), "$1…@")
	return strings.Join(strings.FieldsFunc(line, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// output is the flag of every command that prints data.
type output struct {
	Output string `short:"o" enum:"text,json" default:"text" help:"What to print: text or json."`
}

func (o output) json() bool { return o.Output == "json" }

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type versionCmd struct{ output }

func (c versionCmd) Run() error {
	v := struct {
		Version  string `json:"version"`
		Revision string `json:"revision,omitempty"`
		Modified bool   `json:"modified,omitempty"`
		Go       string `json:"go"`
	}{Version: "(unknown)"}
	if info, ok := debug.ReadBuildInfo(); ok {
		v.Version, v.Go = info.Main.Version, info.GoVersion
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Revision = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	if c.json() {
		return printJSON(os.Stdout, v)
	}
	_, err := fmt.Printf("holdfast %s %s\n", v.Version, v.Go)
	return err
}
