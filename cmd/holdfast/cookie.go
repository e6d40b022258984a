package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
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
	Value       []string `arg:"" help:"The cookie's value or the token; the values of several cookies, in order; the lines of a Cookie or Set-Cookie header; or - to read these from standard input, a line each."`
	Keys        string   `help:"The key ring's URL, such as file:/etc/app/keys. Without it, only what everybody can read is shown." placeholder:"URL"`
	Application string   `help:"The application that a cookie was made for."`
	Purpose     string   `help:"The purpose that a cookie was made for." default:"session"`
	Issuer      string   `help:"The issuer that a JWT must have (default: the one it has)."`
	Audience    string   `help:"The audience that a JWT must have (default: the one it has)."`
	Name        string   `help:"The name of the cookie that it came in." default:"__Host-Http-session"`
	Header      bool     `help:"It came in a header, not in a cookie."`
	Tenant      string   `help:"The tenant that it is for."`
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
	given, err := c.given(os.Stdin)
	if err != nil {
		return fmt.Errorf("cookie inspect: %w", err)
	}
	value, notOne := c.join(given)
	if errors.Is(notOne, errUsage) {
		return fmt.Errorf("cookie inspect: %w", notOne)
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
	if notOne != nil {
		r = sealed.Report{Kind: "cookie", Refused: "incomplete", Why: notOne.Error()}
	} else if strings.Contains(value, ".") { // which a cookie's envelope never has
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

// given returns what the command line or standard input has, without the white space around.
func (c inspectCmd) given(stdin io.Reader) ([]string, error) {
	given := c.Value
	if len(given) == 1 && given[0] == "-" {
		b, err := io.ReadAll(io.LimitReader(stdin, maxInspect+1))
		switch {
		case err != nil:
			return nil, fmt.Errorf("standard input: %w", err)
		case len(b) > maxInspect:
			return nil, fmt.Errorf("standard input: %w: more than %d bytes", errUsage, maxInspect)
		}
		given = strings.Split(string(b), "\n")
	}
	var values []string
	for _, v := range given {
		if v = strings.TrimSpace(v); v != "" {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return nil, fmt.Errorf("%w: the value is empty", errUsage)
	}
	return values, nil
}

// maxInspect is more than any token with the names of its cookies.
const maxInspect = 2 * sealed.LimitBytes

// furtherPart is what the cookies but the first of a token in several begin with.
var furtherPart = regexp.MustCompile(`^[A-Z2-7]{8}\.[^.]*$`)

// join returns the token in what was given. An error that is not errUsage says why the cookies are not one token.
func (c inspectCmd) join(given []string) (string, error) {
	var lines, values []string
	sent := make(map[string]string) // by Set-Cookie; of two of a name, browsers keep the later
	for _, line := range given {
		header, rest, named := strings.Cut(line, ":")
		switch {
		case named && strings.EqualFold(header, "Cookie"):
			lines = append(lines, rest)
		case named && strings.EqualFold(header, "Set-Cookie"):
			pair, _, _ := strings.Cut(rest, ";")
			if name, v, ok := strings.Cut(strings.TrimSpace(pair), "="); ok {
				sent[name] = v
			}
		case named:
			return "", fmt.Errorf("%w: a line of another header than Cookie and Set-Cookie; of Authorization give what follows Bearer", errUsage)
		case strings.Contains(line, "="): // which no value has
			lines = append(lines, line)
		default:
			values = append(values, line)
		}
	}
	for name, v := range sent {
		if v != "" { // otherwise the cookie is dropped
			lines = append(lines, name+"="+v)
		}
	}
	first := slices.IndexFunc(values, func(v string) bool { return strings.HasPrefix(v, "~") })
	switch {
	case first > 0:
		values = slices.Insert(slices.Delete(slices.Clone(values), first, first+1), 0, values[first])
	case first < 0 && (len(values) > 1 || len(values) == 1 && furtherPart.MatchString(values[0])):
		return "", fmt.Errorf("the first part of a token in several cookies is missing: that of cookie %s, which begins with ~", c.Name)
	}
	for k, v := range values {
		lines = append(lines, sessions.ChunkName(c.Name, k)+"="+v)
	}
	token, err := sessions.JoinToken(c.Name, lines)
	if errors.Is(err, sessions.ErrNotFound) {
		return "", fmt.Errorf("%w: no cookie %s among those given: say with --name how it is called", errUsage, c.Name)
	}
	return token, err
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
