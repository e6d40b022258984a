package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	sessions "github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
)

// cookieCmd is the commands that work with sealed sessions.
type cookieCmd struct {
	Inspect inspectCmd `cmd:"" help:"Explain a sealed cookie or token, without its secrets."`
}

type inspectCmd struct {
	Value       string `arg:"" help:"The cookie's value or the token, or - to read it from standard input."`
	Keys        string `help:"The key ring's URL, such as file:/etc/app/keys. Without it, only what everybody can read is shown." placeholder:"URL"`
	Application string `help:"The application that a cookie was made for."`
	Purpose     string `help:"The purpose that a cookie was made for." default:"session"`
	Issuer      string `help:"The issuer that a JWT must have (default: the one it has)."`
	Audience    string `help:"The audience that a JWT must have (default: the one it has)."`
	Name        string `help:"The name of the cookie that it came in." default:"__Host-Http-session"`
	Header      bool   `help:"It came in a header, not in a cookie."`
	Tenant      string `help:"The tenant that it is for."`
	output
}

func (inspectCmd) Help() string {
	return `Says which key made it, how old and how large it is, when it expires, which fields it has, and why it would be refused. It shows
no value of a field, no user and no key.

Whoever has the value has the session: read it from standard input, so that it stays out of the shell's history.

Examples:

  holdfast cookie inspect - --keys file:/etc/app/keys --application shop
  holdfast cookie inspect - --keys file:/etc/app/keys --header -o json`
}

// binding is what the Manager binds a token to.
func (c inspectCmd) binding() string {
	if c.Header {
		return sessions.Binding("", c.Tenant)
	}
	return sessions.Binding(c.Name, c.Tenant)
}

func (c inspectCmd) Run(ctx context.Context) error {
	value := c.Value
	if value == "-" {
		b, err := io.ReadAll(io.LimitReader(os.Stdin, sealed.LimitBytes+1))
		if err != nil {
			return fmt.Errorf("cookie inspect: standard input: %w", err)
		}
		value = strings.TrimSpace(string(b))
	}
	if value == "" {
		return fmt.Errorf("cookie inspect: %w: the value is empty", errUsage)
	}
	var keys *keyring.Ring
	if c.Keys != "" {
		var err error
		if keys, err = keyring.Open(ctx, c.Keys); err != nil {
			return fmt.Errorf("cookie inspect: %w", err)
		}
		defer keys.Close()
	}
	var r sealed.Report
	var err error
	if strings.Contains(value, ".") { // which a cookie's envelope never has
		r, err = jwt.Inspect(keys, jwt.Config{Issuer: c.Issuer, Audience: c.Audience}, c.binding(), value)
	} else {
		r, err = cookie.Inspect(keys, cookie.Config{Application: c.Application, Purpose: c.Purpose}, c.binding(), value)
	}
	if err != nil {
		return fmt.Errorf("cookie inspect: %w", err)
	}
	if c.json() {
		err = printJSON(os.Stdout, r)
	} else {
		err = printSealed(r, keys != nil, time.Now())
	}
	if err == nil && r.Refused != "" {
		return fmt.Errorf("cookie inspect: it would be refused: %s", r.Why)
	}
	return err
}

func printSealed(r sealed.Report, keyed bool, now time.Time) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(name string, value any) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%v\n", name, value)
		}
	}
	moment := func(name string, t time.Time) {
		if !t.IsZero() {
			d := t.Sub(now).Round(time.Second)
			when := fmt.Sprintf("%v ago", -d)
			if d > 0 {
				when = fmt.Sprintf("in %v", d)
			}
			row(name, t.UTC().Format(time.RFC3339)+", "+when)
		}
	}
	row("kind", r.Kind)
	if r.Version != 0 {
		row("version", r.Version)
	}
	row("bytes", r.Bytes)
	row("algorithm", r.Algorithm)
	row("type", r.Type)
	row("issuer", r.Issuer)
	row("audience", r.Audience)
	row("key", strings.TrimSuffix(r.Key+", "+r.KeyState, ", "))
	switch {
	case r.Verified:
		row("verified", "yes")
	case !keyed:
		row("verified", "no: give --keys")
	default:
		row("verified", "no: what is above and below may be forged")
	}
	if r.Stale {
		row("stale", "yes: it is made anew when it is used")
	}
	row("session", r.ID)
	if r.Verified || r.Kind == "jwt" {
		row("logged in", map[bool]string{true: "yes", false: "no"}[r.LoggedIn])
	}
	moment("created", r.Created)
	moment("seen", r.Seen)
	moment("expires", r.Expires)
	for _, f := range r.Fields {
		row("field "+strconv.Quote(f.Name), fmt.Sprintf("%d bytes", f.Bytes))
	}
	row("refused", r.Refused)
	return w.Flush()
}
