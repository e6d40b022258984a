package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/storeurl"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
)

// OpenManager opens what keeps the sessions that rawURL names, and returns their Manager: a store, as Open does, or
//
//	cookie:?keys=URL&users=URL[&option=value...]     the whole session in an encrypted cookie
//	jwt:?keys=URL&users=URL&issuer=I&audience=A[...] the session as a signed token
//
// with keys as keyring.Open reads it (file:/path, env:NAME, https://…) and users as Open does; both percent-encoded where
// they have "&", "#" or "+" in them. users=none goes without a store for user records, so that nobody can be logged out by
// force. The options of both are
//
//	strict=true        Config.Strict      down=accept      Config.FailOpen (down=refuse is the default)
//	spill=true         Config.Spill       max_bytes=N      the longest token, all of its cookies together
//
// that of cookie: is application=NAME, those of jwt: are algorithm=EdDSA|ES256|HS256, encrypt=true, type=TYPE,
// leeway=30s and bearer=true (the token in Authorization, not in a cookie: Config.Bearer and DisableCookie).
//
// c is completed by what the URL says. The Closer closes all that was opened, after the last request.
func OpenManager(ctx context.Context, rawURL string, c holdfast.Config) (*holdfast.Manager, io.Closer, error) {
	scheme := schemeOf(rawURL)
	if !sealedScheme(scheme) {
		s, err := Open(ctx, rawURL)
		if err != nil {
			return nil, nil, err
		}
		m, err := holdfast.New(s, c)
		if err != nil {
			_ = s.Close() // err says more
			return nil, nil, err
		}
		return m, s, nil
	}
	o, err := parseSealed(rawURL)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrURL, scheme, err)
	}
	c.Strict, c.FailOpen, c.Spill = c.Strict || o.strict, c.FailOpen || o.failOpen, c.Spill || o.spill
	if o.bearer {
		c.Bearer, c.DisableCookie = true, true
	}
	var opened closers
	fail := func(err error) (*holdfast.Manager, io.Closer, error) {
		_ = opened.Close() // err says more
		return nil, nil, err
	}
	keys, err := keyring.Open(ctx, o.keys)
	if err != nil {
		return fail(err)
	}
	opened = append(opened, keys)
	var sealer driver.Sealer
	if scheme == "cookie" {
		sealer, err = cookie.New(keys, o.cookie)
	} else {
		sealer, err = jwt.New(keys, o.jwt)
	}
	if err != nil {
		return fail(err)
	}
	var users driver.Store
	if o.users != "none" {
		if users, err = Open(ctx, o.users); err != nil {
			return fail(fmt.Errorf("users: %w", err))
		}
		opened = append(opened, users)
	}
	m, err := holdfast.NewSealed(sealer, users, c)
	if err != nil {
		return fail(err)
	}
	return m, append(opened, m), nil
}

func sealedScheme(scheme string) bool { return scheme == "cookie" || scheme == "jwt" }

// closers are closed in the opposite order.
type closers []io.Closer

func (c closers) Close() error {
	var errs []error
	for _, one := range slices.Backward(c) {
		errs = append(errs, one.Close())
	}
	return errors.Join(errs...)
}

// sealedOptions is what a URL of sealed sessions says.
type sealedOptions struct {
	keys, users                     string
	strict, failOpen, spill, bearer bool
	cookie                          cookie.Config
	jwt                             jwt.Config
}

func parseSealed(rawURL string) (o sealedOptions, err error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return o, errors.New("it cannot be read: percent-encode the URLs in it")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return o, errors.New("its options cannot be read: percent-encode the URLs in it")
	}
	var errs []error
	if u.Opaque != "" || u.Host != "" || u.Path != "" || u.User != nil || u.Fragment != "" {
		errs = append(errs, fmt.Errorf("only options follow the colon: %s:?keys=file:/path&users=URL (write # as %%23)", u.Scheme))
	}
	text := func(to *string) func(string) error {
		return func(v string) error {
			if v == "" {
				return errors.New("it is empty")
			}
			*to = v
			return nil
		}
	}
	yes := func(to *bool) func(string) error {
		return func(v string) error {
			if v != "true" && v != "false" {
				return fmt.Errorf("%q is neither true nor false", v)
			}
			*to = v == "true"
			return nil
		}
	}
	options := map[string]func(string) error{
		"keys": text(&o.keys), "users": text(&o.users), "strict": yes(&o.strict), "spill": yes(&o.spill),
		"down": func(v string) error {
			if v != "refuse" && v != "accept" {
				return fmt.Errorf("%q is neither refuse nor accept", v)
			}
			o.failOpen = v == "accept"
			return nil
		},
		"max_bytes": func(v string) error {
			n, err := strconv.Atoi(v)
			if err != nil || n <= 0 {
				return fmt.Errorf("%q is no number of characters", v)
			}
			o.cookie.MaxBytes, o.jwt.MaxBytes = n, n
			return nil
		},
	}
	if strings.EqualFold(u.Scheme, "cookie") {
		options["application"] = text(&o.cookie.Application)
	} else {
		options["issuer"], options["audience"] = text(&o.jwt.Issuer), text(&o.jwt.Audience)
		options["type"], options["encrypt"], options["bearer"] = text(&o.jwt.Type), yes(&o.jwt.Encrypt), yes(&o.bearer)
		options["algorithm"] = func(v string) error { o.jwt.Algorithm = jwt.Algorithm(v); return nil }
		options["leeway"] = func(v string) (err error) {
			if o.jwt.Leeway, err = time.ParseDuration(v); err != nil {
				return fmt.Errorf("%q is no time such as 30s", v)
			}
			return nil
		}
	}
	errs = append(errs, storeurl.Options(query, options))
	if o.keys == "" && !query.Has("keys") {
		errs = append(errs, errors.New("keys is missing: keys=file:/path, a key ring made by: holdfast key new /path"))
	}
	if o.users == "" && !query.Has("users") {
		errs = append(errs, errors.New("users is missing: the URL of the store that keeps user records, by which sessions are taken back; or users=none"))
	}
	if o.users == "memory:" {
		errs = append(errs, errors.New("users=memory: is not shared: each server would end sessions for itself only"))
	}
	return o, errors.Join(errs...)
}
