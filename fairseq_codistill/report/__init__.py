"""``codistill report``: tables and pictures of what any number of runs have logged.

``runs`` finds the logs of what the user named, ``logs`` reads them and ``thinning`` keeps long ones
small, ``launched`` reads ``launch.json``, ``settings`` tells which runs differ in their seed only
and ``labels`` puts these into one line. ``series`` makes a mean
and a band of several curves, ``figures`` the numbers, ``compare`` tells how far two lines are
apart, ``scores`` how well a run translates, ``agreement`` how alike its models' answers on images
are, and ``origin`` how it was made. ``content`` says what a report holds, ``tables`` and
``pictures`` fill it (``wording`` writes the numbers, ``plots`` draws), ``build`` puts it together;
``markdown``, ``page`` and ``document`` write it out, and ``show`` is the command.
Nothing here imports torch or fairseq.
"""

# For --help, which loads none of the modules here.
KEYS = """\
keys of report.json (what is not known is null; updates and values are lists alike):
  format           1
  notes            sentences about what was left out or is odd
  labels           one for each line of the table:
    label, codistilled
    spreads        over its models: best_nll, best_update, last_nll, best_top1,
                   last_top1, updates, words_per_second,
                   images_per_second, alpha, staleness, stall_share, seconds and
                   restarts, each null or mean, min, max
    runs           each run with a launch.json: run, command (of absolute paths the
                   last component) and versions
    scores         sacreBLEU of each run that examples/evaluate.sh has scored:
                   run, models (a list), ensemble, weight_average, signature,
                   conditions (subset, sentences, beam, lenpen, checkpoints,
                   references)
    agreement      of each run of images with an agreement.jsonl: run, updates,
                   agreement (the share of images that two groups' models give
                   the same class) and churn (the rest)
    models         each model, that is each group of each run:
      log, run, group, seed, run_id, git_commit
      figures      the same keys, each a number; nll in bits per token or image,
                   top1 in percent, staleness in updates, stall_share of seconds
      curves       train_nll, train_loss, eval_train_nll, valid_nll, valid_top1,
                   distance, alpha, codistill_loss, staleness, each as logged (of
                   more than 20,000 lines of a kind, means of neighbours):
                   updates, values
"""
