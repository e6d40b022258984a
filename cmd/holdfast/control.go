package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// control is how the commands that talk to a running gateway reach its admin API.
type control struct {
	Admin     string `default:"127.0.0.1:9180" placeholder:"ADDR" help:"Admin address of the gateway (${default})."`
	TokenFile string `type:"path" placeholder:"PATH" help:"File with the token of the admin API, if it asks for one. Or put the token into HOLDFAST_ADMIN_TOKEN."`
}

// call asks the admin API, with in as the body unless it is nil, and reads the answer into out.
func (c control) call(ctx context.Context, method, path string, in, out any) error {
	token := os.Getenv("HOLDFAST_ADMIN_TOKEN")
	if c.TokenFile != "" {
		var err error
		if token, err = readToken(c.TokenFile); err != nil {
			return err
		}
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+c.Admin+path, body)
	if err != nil {
		return fmt.Errorf("%w: --admin %q: want host:port", errUsage, c.Admin)
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := (&http.Client{Transport: &http.Transport{}}).Do(r) // without a proxy
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no gateway at %s: start it with --admin %s, or say where it is with --admin", c.Admin, c.Admin)
	case err != nil:
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return fmt.Errorf("gateway at %s: %w", c.Admin, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("gateway at %s: %w", c.Admin, err)
	}
	if res.StatusCode != http.StatusOK {
		var said struct {
			Error string `json:"error"`
		}
		if err := json.Unmarshal(b, &said); err != nil || said.Error == "" {
			return fmt.Errorf("gateway at %s: status %s: is that the admin address of a gateway?", c.Admin, res.Status)
		}
		return errors.New(said.Error)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("gateway at %s: %w: is that the admin address of a gateway?", c.Admin, err)
	}
	return nil
}

func printUpstreams(o output, all []gateway.UpstreamStats) error {
	if o.json() {
		return printJSON(os.Stdout, map[string]any{"upstreams": all})
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATE\tWEIGHT\tACTIVE\tREQUESTS\tFAILURES\tURL")
	for _, u := range all {
		state := string(u.State)
		if !u.DrainUntil.IsZero() {
			state += " until " + u.DrainUntil.Local().Format(time.TimeOnly)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", u.ID, state, u.Weight, u.Active, u.Requests, u.Failures, u.URL)
	}
	return w.Flush()
}

type upstreamsCmd struct {
	control
	output
}

func (c upstreamsCmd) Run(ctx context.Context) error {
	var all struct{ Upstreams []gateway.UpstreamStats }
	if err := c.call(ctx, http.MethodGet, "/v1/upstreams", nil, &all); err != nil {
		return err
	}
	return printUpstreams(c.output, all.Upstreams)
}

// upstreamArg is the argument of the commands that change one upstream.
type upstreamArg struct {
	ID string `arg:"" help:"The ID of the server, as holdfast gateway upstreams shows it."`
	control
	output
}

// change calls a method of the API on the upstream, and prints what has become of it.
func (c upstreamArg) change(ctx context.Context, what string, in any) error {
	var u gateway.UpstreamStats
	if err := c.call(ctx, http.MethodPost, "/v1/upstreams/"+url.PathEscape(c.ID)+"/"+what, in, &u); err != nil {
		return err
	}
	return printUpstreams(c.output, []gateway.UpstreamStats{u})
}

type drainCmd struct {
	Within time.Duration `default:"10m" help:"Time for the server's own clients; then they go elsewhere, and what is not finished is cut off (${default})."`
	upstreamArg
}

func (drainCmd) Help() string {
	return `New clients go elsewhere at once. Those that belong to the server, by a cookie, a session or a route, keep it for as long
as --within says. When that is over the server is empty, and in maintenance; "holdfast gateway ready" takes it back.

  holdfast gateway drain a --within 5m`
}

func (c drainCmd) Run(ctx context.Context) error {
	return c.change(ctx, "drain", map[string]string{"within": c.Within.String()})
}

type maintenanceCmd struct{ upstreamArg }

func (c maintenanceCmd) Run(ctx context.Context) error {
	return c.change(ctx, "maintenance", struct{}{})
}

type readyCmd struct{ upstreamArg }

func (c readyCmd) Run(ctx context.Context) error { return c.change(ctx, "ready", struct{}{}) }

type weightCmd struct {
	Weight int `help:"The new weight, 1 to 1000." required:""`
	upstreamArg
}

func (c weightCmd) Run(ctx context.Context) error {
	return c.change(ctx, "weight", map[string]int{"weight": c.Weight})
}

type explainCmd struct {
	Cookie string   `placeholder:"COOKIES" help:"The Cookie header of the request, as in a browser's tools."`
	IP     string   `placeholder:"ADDRESS" help:"The client's address (127.0.0.1)."`
	Path   string   `placeholder:"PATH" help:"Path and query (/)."`
	Host   string   `placeholder:"HOST" help:"The host that the client asks for (localhost)."`
	Header []string `sep:"none" placeholder:"NAME:VALUE" help:"Another header of the request. Once for each."`
	Plain  bool     `help:"The client speaks plain HTTP, not HTTPS."`
	control
	output
}

func (explainCmd) Help() string {
	return `Says step by step where the gateway would send a request now, and why. It sends nothing, changes nothing, and shows no
cookie. Other users of this machine see the arguments of a command: for cookies that matter, --cookie @FILE reads a file.

  holdfast gateway explain --cookie '__Host-holdfast-upstream=...' --ip 192.0.2.7 --path /cart`
}

func (c explainCmd) Run(ctx context.Context) error {
	cookie := c.Cookie
	if file, ok := strings.CutPrefix(cookie, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("--cookie: %w", err)
		}
		cookie = strings.TrimSpace(string(b))
	}
	header := make(map[string]string)
	for _, h := range c.Header {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return fmt.Errorf("%w: --header %q: want NAME:VALUE", errUsage, h)
		}
		header[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	var out struct {
		Steps []string `json:"steps"`
	}
	err := c.call(ctx, http.MethodPost, "/v1/explain", map[string]any{
		"cookie": cookie, "ip": c.IP, "path": c.Path, "host": c.Host, "header": header, "tls": !c.Plain,
	}, &out)
	if err != nil {
		return err
	}
	if c.json() {
		return printJSON(os.Stdout, out)
	}
	for i, s := range out.Steps {
		fmt.Printf("%d. %s\n", i+1, s)
	}
	return nil
}
